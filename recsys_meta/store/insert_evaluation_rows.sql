-- The rows, as they stand in the view that is registered under this name.
INSERT INTO @table BY NAME SELECT $evaluation_id AS evaluation_id, * FROM evaluation_rows;
