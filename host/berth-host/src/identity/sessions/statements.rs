//! The statements, and how their rows are read. An ended session expires when it ends, so that one index finds all that
//! is old.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::SessionInfo;
use crate::identity::account::{account_columns, milliseconds};

type Read<T> = Result<T, sqlx::Error>;

/// `$1` session, `$2` user. Rows are accounts.
pub(super) const ACCOUNT: &str = concat!(
    "select ",
    account_columns!(),
    " from identity.users
      where id = $2 and active and exists (
          select from identity.sessions s
          where s.id = $1 and s.user_id = users.id and s.ended_at is null and s.expires_at > now())"
);

/// `$1` session, `$2` user, `$3` seconds of life, `$4` address, `$5` user agent, `$6` how many others may stay open.
/// Run again with the same session it changes nothing.
pub(super) const OPEN: &str = "
    with opened as (
        insert into identity.sessions (id, user_id, expires_at, client_ip, user_agent)
        select $1, u.id, now() + make_interval(secs => $3), $4, $5
        from identity.users u where u.id = $2 and u.active
        on conflict (id) do update set user_id = excluded.user_id
        returning id
    ), surplus as (
        update identity.sessions s
        set ended_at = now(), ended_by = 'revoked', expires_at = least(s.expires_at, now())
        from (
            select id from identity.sessions
            where user_id = $2 and id <> $1 and ended_at is null and expires_at > now()
            order by created_at desc, id desc offset $6
        ) oldest
        where s.id = oldest.id and exists (select from opened)
    )
    select id from opened";

/// `$1` session, `$2` the counter of the token that is used, `$3` seconds of life.
pub(super) const ROTATE: &str = "
    update identity.sessions s
    set rotation = s.rotation + 1, rotated_at = now(), last_used_at = now(),
        expires_at = now() + make_interval(secs => $3)
    from identity.users u
    where s.id = $1 and s.rotation = $2 and s.ended_at is null and s.expires_at > now()
        and u.id = s.user_id and u.active
    returning s.user_id, floor(extract(epoch from s.expires_at - now()))::bigint as seconds_left";

/// `$1` session, `$2` seconds of grace.
pub(super) const LOOK: &str = "
    select s.user_id, u.email_canonical, s.rotation, s.ended_at is null and s.expires_at > now() as open, u.active,
        s.rotated_at > now() - make_interval(secs => $2) as recent,
        floor(extract(epoch from s.expires_at - now()))::bigint as seconds_left
    from identity.sessions s join identity.users u on u.id = s.user_id
    where s.id = $1";

/// A session as [`LOOK`] finds it.
pub(super) struct State {
    pub(super) email: String,
    pub(super) rotation: i64,
    pub(super) open: bool,
    pub(super) active: bool,
    /// Refreshed within the grace.
    pub(super) recent: bool,
}

pub(super) fn state(row: &PgRow) -> Read<State> {
    Ok(State {
        email: row.try_get("email_canonical")?,
        rotation: row.try_get("rotation")?,
        open: row.try_get("open")?,
        active: row.try_get("active")?,
        recent: row.try_get("recent")?,
    })
}

/// The user, and the seconds that are left, of [`ROTATE`] and [`LOOK`].
pub(super) fn owner(row: &PgRow) -> Read<(Uuid, i64)> {
    Ok((row.try_get("user_id")?, row.try_get("seconds_left")?))
}

/// `$1` session, `$2` why.
pub(super) const END: &str = "
    update identity.sessions set ended_at = now(), ended_by = $2, expires_at = least(expires_at, now())
    where id = $1 and ended_at is null";

/// `$1` user, `$2` how many.
pub(super) const LIST: &str = "
    select id, (extract(epoch from created_at) * 1000)::bigint, (extract(epoch from last_used_at) * 1000)::bigint,
        client_ip, user_agent
    from identity.sessions
    where user_id = $1 and ended_at is null and expires_at > now()
    order by created_at desc, id desc limit $2";

pub(super) fn info(row: &PgRow) -> Read<SessionInfo> {
    Ok(SessionInfo {
        id: row.try_get(0)?,
        created_at: milliseconds(row.try_get(1)?),
        last_used_at: milliseconds(row.try_get(2)?),
        client_ip: row.try_get(3)?,
        user_agent: row.try_get(4)?,
    })
}

/// `$1` session, `$2` user, `$3` why.
pub(super) const CLOSE: &str = "
    update identity.sessions set ended_at = now(), ended_by = $3, expires_at = least(expires_at, now())
    where id = $1 and user_id = $2 and ended_at is null and expires_at > now()
    returning id";

/// `$1` user, `$2` the session to keep or null, `$3` why.
pub(super) const CLOSE_ALL: &str = "
    update identity.sessions set ended_at = now(), ended_by = $3, expires_at = least(expires_at, now())
    where user_id = $1 and id is distinct from $2 and ended_at is null and expires_at > now()
    returning id";

/// `$1` how many. Ids come in the order of the index; hosts that sweep at the same time pass each other by.
pub(super) const SWEEP: &str = "
    delete from identity.sessions where id in (
        select id from identity.sessions where expires_at < now() - interval '7 days'
        order by expires_at limit $1 for update skip locked
    )
    returning id";
