//! Opening the folders that a plugin was granted.
//!
//! They are opened once, when the component is loaded; each store gets the open folders, and every path of a guest is
//! resolved from there by wasmtime's capability-based functions, which never leave them: not by `..`, not by an
//! absolute path, not by a symbolic link, nor by one that is swapped in meanwhile. A folder that is renamed or replaced
//! later stays the one that was opened, until the plugin is loaded anew.

use std::io::{self, ErrorKind};

use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{FsPerms, WasiCtx};

use super::plugin::LoadFault;
use crate::grants::folders::FolderGrant;

/// Open all of them; nothing if none is granted.
///
/// # Errors
/// Every folder that can't be opened, with the reason.
pub(super) fn open(folders: &[FolderGrant]) -> Result<Option<WasiFilesystemCtx>, LoadFault> {
    if folders.is_empty() {
        return Ok(None);
    }
    let mut builder = WasiCtx::builder();
    let mut faults = Vec::new();
    for folder in folders {
        let perms = if folder.may_write() {
            FsPerms::ReadWrite
        } else {
            FsPerms::ReadOnly
        };
        if let Err(error) = builder.preopened_dir(folder.host(), folder.guest(), perms) {
            faults.push(format!(
                "the folder for \"{}\", {}: {}",
                folder.guest(),
                folder.host().display(),
                reason(&error)
            ));
        }
    }
    if !faults.is_empty() {
        return Err(LoadFault::Folders(faults));
    }
    Ok(Some(builder.build().filesystem().clone()))
}

fn reason(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(ErrorKind::NotFound) => "there is no such folder; make it, or correct `folders`".to_owned(),
        Some(ErrorKind::NotADirectory) => {
            "it is not a folder; name the folder that the file is in".to_owned()
        }
        Some(ErrorKind::PermissionDenied) => "berth may not open it; change its owner or its mode".to_owned(),
        _ => format!("{error:#}"),
    }
}
