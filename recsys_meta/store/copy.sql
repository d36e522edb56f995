-- The same rows in the same order as Parquet.
COPY (SELECT * FROM @table) TO @path (FORMAT parquet, COMPRESSION zstd);
