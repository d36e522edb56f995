-- The record of one run.
INSERT INTO runs BY NAME SELECT
    $run_id AS run_id,
    $run_date AS run_date,
    $status AS status,
    $started_at AS started_at,
    $finished_at AS finished_at,
    $model_version AS model_version,
    $model_fingerprint AS model_fingerprint,
    $config_fingerprint AS config_fingerprint,
    $data_fingerprint AS data_fingerprint,
    $seed AS seed,
    $versions AS versions,
    $counts AS counts,
    $metrics AS metrics,
    $seconds AS seconds,
    $gates AS gates,
    $policy AS policy,
    $expires_at AS expires_at;
