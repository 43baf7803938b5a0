//! `afar as-user`: the role in which root becomes a user, and then that user's supervisor. Not for
//! people: the listener starts it.

use afar_server::launch::as_user::{AsUser, run};
use afar_server::log::Log;

use crate::args::AsUserArgs;
use crate::exit::Exit;

/// Becomes the user's supervisor. Returns only if there is one already, or if it could not.
pub(crate) fn cmd_as_user(args: AsUserArgs) -> Exit {
    let log = Log::default();
    let AsUserArgs { name, uid, socket_dir } = args;
    match run(&AsUser { name, uid, socket_dir, log }) {
        Ok(()) => Exit::Status(0),
        Err(error) => {
            // Among the listener's own lines, so in their form.
            log.error(&format!("as-user: {error}"));
            Exit::Failed
        }
    }
}
