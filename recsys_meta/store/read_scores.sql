-- Scores in the order of users and ranks.
SELECT * FROM scores ORDER BY user_id, rank;
