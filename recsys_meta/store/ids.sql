-- No rows, but the types of the ids.
SELECT user_id, item_id FROM @table LIMIT 0;
