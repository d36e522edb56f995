-- A table of just these rows.
CREATE TABLE @table AS SELECT * FROM found_rows;
