-- The rows of one evaluation in one table, in the place of those that a former run of it left.
DELETE FROM @table WHERE evaluation_id = $evaluation_id;
