//! The data folder of a berth with accounts, and how another program reaches the private Postgres in it.

use std::path::{Path, PathBuf};

use super::Tools;
use super::cases::Setup;
use crate::failure::{self, Failure};

/// Where the setup's berth keeps its data. In the temporary folder, which every user may pass through: under root the
/// private Postgres runs as somebody else.
pub(super) fn folder(tools: &Tools, setup: &Setup) -> PathBuf {
    let checkout = tools.folder.to_string_lossy();
    let mark = checkout.bytes().fold(0_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    std::env::temp_dir().join(format!("{}-{mark:08x}", setup.name))
}

/// The same without anything in it.
pub(super) fn fresh_folder(tools: &Tools, setup: &Setup) -> Result<PathBuf, Failure> {
    let folder = folder(tools, setup);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failure::io(
            format!(
                "The data of the last bench, {}, can't be removed",
                folder.display()
            ),
            "Remove the folder by hand.",
        )(error)),
        _ => Ok(folder),
    }
}

/// The address of the private Postgres of a data folder, with the login of the berth that runs it.
pub(super) fn url(data: &Path) -> Result<String, Failure> {
    let file = data.join("postgres.password");
    let password = std::fs::read_to_string(&file).map_err(failure::io(
        format!(
            "The password of the private Postgres, {}, can't be read",
            file.display()
        ),
        "Look at the log of berth-accounts in target/bench.",
    ))?;
    let socket = data.join("socket").to_string_lossy().replace('/', "%2F");
    Ok(format!("postgres://berth:{}@{socket}/berth", password.trim()))
}
