-- Bids of each user in windows of ten seconds of processing time.
WITH bid_in_time AS (SELECT *, PROCTIME() AS p_time FROM bid)
SELECT bidder, count(*) AS bid_count, window_start, window_end
FROM TABLE(TUMBLE(TABLE bid_in_time, DESCRIPTOR(p_time), INTERVAL '10' SECOND))
GROUP BY bidder, window_start, window_end
