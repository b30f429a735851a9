-- Accounts, their sessions, and what was done with them. Only the host writes sessions and audit; what the auth policy
-- may touch of the accounts is granted column by column when its role is made.
create schema identity;

-- The mark of the key that every host on this database derives its secrets from; one row.
create table berth.host_key (
    one boolean primary key default true check (one),
    fingerprint bytea not null check (octet_length(fingerprint) = 32)
);

create table identity.users (
    id uuid primary key,
    -- As the user typed it, for mail.
    email text not null check (octet_length(email) between 3 and 254),
    -- As accounts are told apart.
    email_canonical text not null unique
        check (octet_length(email_canonical) between 3 and 254 and email_canonical = lower(email_canonical)),
    email_verified boolean not null default false,
    -- PHC string or bcrypt; none for an account that signs in elsewhere.
    password_hash text check (octet_length(password_hash) between 1 and 512),
    name text not null default '' check (char_length(name) <= 200),
    roles text[] not null default '{}' check (cardinality(roles) <= 64 and array_position(roles, null) is null),
    active boolean not null default true,
    mfa_enabled boolean not null default false,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table identity.sessions (
    id uuid primary key,
    user_id uuid not null references identity.users on delete cascade,
    -- Which of its refresh tokens is the next to be used. The tokens themselves are derived and stored nowhere.
    rotation bigint not null default 0 check (rotation >= 0),
    rotated_at timestamptz not null default now(),
    created_at timestamptz not null default now(),
    last_used_at timestamptz not null default now(),
    expires_at timestamptz not null,
    client_ip text not null default '' check (octet_length(client_ip) <= 64),
    user_agent text check (octet_length(user_agent) <= 1024),
    ended_at timestamptz,
    ended_by text check (ended_by in ('logout', 'reuse', 'revoked', 'password', 'deactivated')),
    check ((ended_at is null) = (ended_by is null))
);
create index sessions_open_by_user on identity.sessions (user_id, created_at desc) where ended_at is null;
create index sessions_by_expiry on identity.sessions (expires_at);

create table identity.audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    -- As in 'login' or 'roles'.
    action text not null check (octet_length(action) between 1 and 64),
    -- 'ok', or the code of the refusal.
    outcome text not null check (octet_length(outcome) between 1 and 64),
    -- Whom it was about, if there is such an account; kept when the account is deleted.
    user_id uuid,
    -- What was given as the account, for attempts without one.
    account text check (octet_length(account) <= 320),
    -- 'operator', or the user who did it.
    actor text check (octet_length(actor) <= 64),
    client_ip text check (octet_length(client_ip) <= 64),
    request_id text check (octet_length(request_id) <= 128),
    -- The plugin that decided, and the digest of its component.
    plugin text check (octet_length(plugin) <= 64),
    digest text check (octet_length(digest) <= 64),
    -- What else there is to say, as in '+admin -reader'.
    detail text check (octet_length(detail) <= 1024)
);
create index audit_by_user on identity.audit (user_id, id desc) where user_id is not null;
create index audit_by_account on identity.audit (lower(account), id desc) where account is not null;
create index audit_by_time on identity.audit (at);
