//! One who is attached to a job, and how far each stream was told to them.

use super::{Allowance, AttachmentId};

/// An attachment.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) id: AttachmentId,
    pub(super) cursors: [Cursor; 2],
    /// Whether more than what there was is wanted.
    pub(super) follow: bool,
    pub(super) exit_told: bool,
    pub(super) seal_told: bool,
}

/// How far one stream was told.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// The next offset.
    pub(super) next: u64,
    /// How much the attachment takes now.
    pub(super) room: Allowance,
    /// The offset behind the last byte that is wanted.
    pub(super) until: Option<u64>,
    /// Whether the next bytes are being read from the spool.
    pub(super) reading: bool,
    /// Whether the stream has ended for this attachment, or was never wanted.
    pub(super) over: bool,
}

impl Attachment {
    /// Whether all streams have ended for it.
    pub(super) fn has_everything(&self) -> bool {
        self.cursors.iter().all(|cursor| cursor.over)
    }
}
