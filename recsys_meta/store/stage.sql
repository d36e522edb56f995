-- The parts of the run as views, so that the checks see exactly what is going to be published.
CREATE TEMP VIEW staged_scores AS
SELECT * FROM read_parquet(getvariable('scores_parts'), hive_partitioning = false);

CREATE TEMP VIEW staged_user_status AS
SELECT * REPLACE (
    -- A loss that is no finite number is no figure; the reason says what happened.
    CASE WHEN isfinite(support_loss_before) THEN support_loss_before END AS support_loss_before,
    CASE WHEN isfinite(support_loss_after) THEN support_loss_after END AS support_loss_after
) FROM read_parquet(getvariable('user_status_parts'), hive_partitioning = false);
