CREATE TABLE listings (
    id      TEXT PRIMARY KEY,
    host    TEXT NOT NULL,
    nightly BIGINT NOT NULL,
    sleeps  BIGINT NOT NULL,
    policy  TEXT NOT NULL,
    instant BIGINT NOT NULL
);

-- One row per night that is held or sold. Its key is the rule that nobody books twice.
CREATE TABLE nights (
    listing TEXT NOT NULL,
    night   TEXT NOT NULL,
    booking TEXT NOT NULL,
    PRIMARY KEY (listing, night)
);

CREATE TABLE bookings (
    id      TEXT PRIMARY KEY,
    listing TEXT NOT NULL,
    guest   TEXT NOT NULL,
    status  TEXT NOT NULL
);
