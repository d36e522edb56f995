-- The vectors of the users, where the run has written any.
CREATE TEMP VIEW staged_user_vectors AS
SELECT * FROM read_parquet(getvariable('user_vectors_parts'), hive_partitioning = false);
