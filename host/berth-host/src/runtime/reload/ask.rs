//! How a change is asked for.

use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::Outcome;
use super::canary::{Bounds, Share};
use crate::error::Error;

/// Changes of one kind that may wait while another is made.
const WAITING: usize = 16;

/// A change that is asked for.
#[derive(Debug)]
pub enum Change {
    /// Serve this component.
    Deploy {
        /// The plugin.
        plugin: String,
        /// The component.
        bytes: Vec<u8>,
        /// The text of its signature.
        signature: Option<String>,
        /// Try it first, with a share of the callers.
        canary: Option<(Share, Bounds)>,
    },
    /// Go back to an earlier version; in a trial, withdraw the candidate.
    RollBack {
        /// The plugin.
        plugin: String,
        /// The first digits of its digest; the one before the current one if none.
        to: Option<String>,
    },
    /// End a trial: the candidate serves everybody.
    Promote {
        /// The plugin.
        plugin: String,
    },
    /// Switch a plugin off, or on again.
    SetDisabled {
        /// The plugin.
        plugin: String,
        /// Off.
        disabled: bool,
    },
    /// Read the manifest again.
    Manifest,
}

impl Change {
    /// Of which plugin; nothing if it isn't about one.
    pub(super) fn plugin(&self) -> Option<&str> {
        match self {
            Self::Deploy { plugin, .. }
            | Self::RollBack { plugin, .. }
            | Self::Promote { plugin }
            | Self::SetDisabled { plugin, .. } => Some(plugin),
            Self::Manifest => None,
        }
    }

    /// Whether somebody who asks for this can't wait until another plugin's component is compiled. It takes no compiling
    /// itself, or what was compiled before.
    fn is_urgent(&self) -> bool {
        match self {
            Self::RollBack { .. } | Self::Promote { .. } | Self::SetDisabled { .. } => true,
            Self::Deploy { .. } | Self::Manifest => false,
        }
    }
}

/// Where changes are asked for. See [`super::Reloader`].
#[derive(Debug)]
pub struct Reload {
    urgent: mpsc::Sender<Command>,
    others: mpsc::Sender<Command>,
}

/// What has been asked for.
#[derive(Debug)]
pub struct Inbox {
    /// Made while a component is compiled, too.
    pub(super) urgent: mpsc::Receiver<Command>,
    others: mpsc::Receiver<Command>,
}

/// Of an operator.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) change: Change,
    pub(super) asked: Instant,
    pub(super) reply: oneshot::Sender<Outcome>,
}

impl Inbox {
    /// What is made next. Nothing if nobody can ask for anything any more.
    pub(super) async fn next(&mut self) -> Option<Command> {
        tokio::select! {
            biased;
            Some(command) = self.urgent.recv() => Some(command),
            Some(command) = self.others.recv() => Some(command),
            else => None,
        }
    }
}

impl Reload {
    /// The two ends.
    pub fn new() -> (Self, Inbox) {
        let (urgent, urgently) = mpsc::channel(WAITING);
        let (others, otherwise) = mpsc::channel(WAITING);
        let inbox = Inbox {
            urgent: urgently,
            others: otherwise,
        };
        (Self { urgent, others }, inbox)
    }

    /// Ask for a change and wait until it is made, or refused. A change that has begun is finished even if nobody waits
    /// for it any more.
    ///
    /// # Errors
    /// Why it was refused; then nothing was changed.
    pub async fn ask(&self, change: Change) -> Outcome {
        let gone = || Error::Conflict("the host is stopping".to_owned());
        let to = if change.is_urgent() {
            &self.urgent
        } else {
            &self.others
        };
        let (reply, outcome) = oneshot::channel();
        let command = Command {
            change,
            asked: Instant::now(),
            reply,
        };
        to.send(command).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}
