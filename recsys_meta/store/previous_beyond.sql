-- How many rows of the run in force before this one have an id that the ids of this one cannot be.
SELECT count(*) FROM previous.scores
WHERE TRY_CAST(user_id AS @user_id_type) IS NULL OR TRY_CAST(item_id AS @item_id_type) IS NULL;
