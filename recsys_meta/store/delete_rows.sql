-- The rows under one id in one table, in the place of those that a former run of it left.
DELETE FROM @table WHERE @key = $id;
