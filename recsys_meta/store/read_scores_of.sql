-- Scores of the users asked for, in the order of users and ranks.
SELECT * FROM scores SEMI JOIN wanted USING (user_id) ORDER BY user_id, rank;
