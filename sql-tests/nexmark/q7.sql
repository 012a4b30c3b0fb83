-- Highest bid of each ten seconds.
SELECT b.auction, b.price, b.bidder, b.date_time, b.extra
FROM bid b
JOIN (
    SELECT max(price) AS most, window_end
    FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(date_time), INTERVAL '10' SECOND))
    GROUP BY window_start, window_end
) m ON b.price = m.most AND b.date_time BETWEEN m.window_end - INTERVAL '10 seconds' AND m.window_end
