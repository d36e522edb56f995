-- How often each item is shown.
SELECT item_id, count(*) AS n FROM scores GROUP BY item_id;
