CREATE TABLE baskets (id text PRIMARY KEY, customer text NOT NULL, greeting text);
