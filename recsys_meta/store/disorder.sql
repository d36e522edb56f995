-- How many rows come before the one that they follow, by user and rank.
SELECT count(*)
FROM (
    SELECT user_id, rank, lag(user_id) OVER () AS user_before, lag(rank) OVER () AS rank_before
    FROM staged_scores
)
WHERE user_id < user_before OR (user_id = user_before AND rank < rank_before);
