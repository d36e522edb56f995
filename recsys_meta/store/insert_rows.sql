-- The rows, as they stand in the view that is registered under this name.
INSERT INTO @table BY NAME SELECT $id AS @key, * FROM found_rows;
