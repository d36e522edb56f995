-- The scores by user and rank, where the parts do not follow each other so.
CREATE TEMP TABLE scores_in_order AS SELECT * FROM staged_scores ORDER BY user_id, rank;
CREATE OR REPLACE TEMP VIEW staged_scores AS SELECT * FROM scores_in_order;
