-- The published tables. The types of the ids are filled in; a type stands here for each column of recsys_meta/tables.py.
CREATE TABLE scores (
    run_id VARCHAR NOT NULL,
    user_id @user_id_type NOT NULL,
    item_id @item_id_type NOT NULL,
    rank INTEGER NOT NULL CHECK (rank >= 1),
    score FLOAT NOT NULL CHECK (isfinite(score)),
    propensity DOUBLE NOT NULL CHECK (propensity > 0 AND propensity <= 1),
    source VARCHAR NOT NULL,
    n_support INTEGER NOT NULL CHECK (n_support >= 0),
    model_version VARCHAR NOT NULL,
    generated_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE user_status (
    user_id @user_id_type NOT NULL,
    source VARCHAR NOT NULL,
    n_support INTEGER NOT NULL CHECK (n_support >= 0),
    support_loss_before FLOAT CHECK (isfinite(support_loss_before)),
    support_loss_after FLOAT CHECK (isfinite(support_loss_after)),
    reason VARCHAR
);

CREATE TABLE user_vectors (
    run_id VARCHAR NOT NULL,
    user_id @user_id_type NOT NULL,
    vector FLOAT[] NOT NULL
);

CREATE TABLE runs (
    run_id VARCHAR NOT NULL,
    run_date DATE NOT NULL,
    status VARCHAR NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ NOT NULL,
    model_version VARCHAR NOT NULL,
    model_fingerprint VARCHAR NOT NULL,
    config_fingerprint VARCHAR NOT NULL,
    data_fingerprint VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    versions JSON NOT NULL,
    counts JSON NOT NULL,
    metrics JSON NOT NULL,
    seconds JSON NOT NULL,
    gates JSON NOT NULL,
    policy JSON NOT NULL,
    expires_at TIMESTAMPTZ
);

CREATE TABLE quarantine (
    run_id VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    row BIGINT,
    "column" VARCHAR,
    reason VARCHAR NOT NULL,
    raw VARCHAR
);

CREATE TABLE aliases (
    alias VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    model_version VARCHAR NOT NULL
);

-- What the run published before this one had shown: the other side of run_diff.
CREATE TABLE previous_ranks (
    user_id @user_id_type NOT NULL,
    item_id @item_id_type NOT NULL,
    rank INTEGER NOT NULL
);
