//! `afar kill`: ends jobs, or sends them a signal.

use crate::args::KillArgs;
use crate::commands::{block_on, for_each_job};
use crate::console::{Verbosity, say};
use crate::exit::Exit;

/// Ends each of the jobs.
pub(crate) fn cmd_kill(args: &KillArgs) -> Exit {
    let signal = args.signal.as_deref();
    let verbose = args.connect.verbosity() >= Verbosity::Verbose;
    block_on(for_each_job(&args.jobs.jobs, &args.connect, async |session, job| {
        let id = session.kill(&job, signal).await?;
        if verbose {
            match signal {
                Some(signal) => say(&format!("{}/{id}: was sent SIG{signal}", session.target())),
                None => say(&format!("{}/{id}: is being ended", session.target())),
            }
        }
        Ok(())
    }))
}
