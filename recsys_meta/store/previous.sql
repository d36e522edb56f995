-- What the run in force before this one had shown.
INSERT INTO previous_ranks
SELECT user_id, item_id, rank FROM previous.scores ORDER BY user_id, rank;
