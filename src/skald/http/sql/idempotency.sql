-- name: claim
INSERT INTO skald_idempotency (scope, key, body_hash, answer, created_at)
VALUES (:scope, :key, :body_hash, :answer, :created_at)
ON CONFLICT (scope, key) DO NOTHING

-- name: find
SELECT body_hash, answer FROM skald_idempotency WHERE scope = :scope AND key = :key

-- name: keep
UPDATE skald_idempotency SET answer = :answer WHERE scope = :scope AND key = :key
