-- The Parquet files of a table; a list that views can see.
SET VARIABLE @{table}_parts = $parts;
