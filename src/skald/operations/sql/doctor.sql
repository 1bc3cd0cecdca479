-- Portable SQL of the doctor.

-- name: deliveries
SELECT handler, origin, state, count(*) AS n, min(due) AS due
FROM skald_deliveries
WHERE group_name = :group
GROUP BY handler, origin, state
ORDER BY handler, origin, state
