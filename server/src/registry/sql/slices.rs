//! Parts of the inner network that gateways own, so that two never give out the same address. Only a registry that
//! gateways share has them.

use std::net::Ipv4Addr;

use super::{Connection, devices, from_sqlx};
use crate::addresses::Pool;
use crate::registry::RegistryError;

/// A free address of the gateway's newest part, of a further part when that is full, or of an older one's gaps.
/// `None` when nothing is left.
pub(super) async fn free_address(
    connection: &mut Connection,
    pool: &Pool,
    gateway: &str,
) -> Result<Option<Ipv4Addr>, RegistryError> {
    let own: Vec<i64> = sqlx::query_scalar("SELECT number FROM slices WHERE gateway = $1 ORDER BY number DESC")
        .bind(gateway)
        .fetch_all(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    let mut older = own.into_iter();
    if let Some(newest) = older.next()
        && let Some(address) = devices::free_address(&mut *connection, range(pool, newest)?).await?
    {
        return Ok(Some(address));
    }
    while let Some(further) = claim(&mut *connection, pool, gateway).await? {
        // Devices of a gateway that was forgotten may fill it.
        if let Some(address) = devices::free_address(&mut *connection, range(pool, further)?).await? {
            return Ok(Some(address));
        }
    }
    for number in older {
        if let Some(address) = devices::free_address(&mut *connection, range(pool, number)?).await? {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

/// Gives the gateway the first part that nobody owns; `None` when there is none.
pub(in super::super) async fn claim(
    connection: &mut Connection,
    pool: &Pool,
    gateway: &str,
) -> Result<Option<i64>, RegistryError> {
    let taken: Vec<i64> = sqlx::query_scalar("SELECT number FROM slices ORDER BY number")
        .fetch_all(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    let free = (0..).zip(taken.iter().map(Some).chain(std::iter::repeat(None)));
    let free = free.into_iter().find(|(number, taken)| *taken != Some(number)).map_or(0, |(number, _)| number);
    if free >= i64::from(pool.slices()) {
        return Ok(None);
    }
    sqlx::query("INSERT INTO slices (number, gateway) VALUES ($1, $2)")
        .bind(free)
        .bind(gateway)
        .execute(connection)
        .await
        .map_err(from_sqlx)?;
    Ok(Some(free))
}

fn range(pool: &Pool, number: i64) -> Result<(i64, i64), RegistryError> {
    let number = u32::try_from(number).ok().filter(|number| *number < pool.slices());
    number.map(|number| pool.slice(number)).ok_or(RegistryError::Impossible("part of the network"))
}
