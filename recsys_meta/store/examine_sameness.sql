-- Of what was adapted: items shown to several users, and those among them that have one score for all; users, and those
-- among them whose items have all one score.
WITH adapted AS (SELECT * FROM scores WHERE source = 'adapted')
SELECT
    (SELECT count(*) FROM (SELECT item_id FROM adapted GROUP BY item_id HAVING count(*) > 1)) AS shared,
    (SELECT count(*) FROM (SELECT item_id FROM adapted GROUP BY item_id HAVING count(*) > 1 AND min(score) = max(score))) AS same,
    (SELECT count(*) FROM (SELECT user_id FROM adapted GROUP BY user_id HAVING count(*) > 1)) AS users,
    (SELECT count(*) FROM (SELECT user_id FROM adapted GROUP BY user_id HAVING count(*) > 1 AND min(score) = max(score))) AS flat;
