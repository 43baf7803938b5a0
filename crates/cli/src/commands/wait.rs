//! `afar wait`: waits for a job and ends as it did.

use afar_client::Attachment;

use crate::args::WaitArgs;
use crate::commands::{FoundJob, job_name};
use crate::exit::Exit;
use crate::run::{EscapeCharacter, Leaving, RunOptions};

/// Waits for the job. A signal is for this program, not for the job.
pub(crate) fn cmd_wait(args: WaitArgs) -> Exit {
    let found = match FoundJob::find(&args.job.job, &args.connect) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let options = RunOptions {
        escape: EscapeCharacter(None),
        stdin: false,
        json: false,
        result: args.result.result,
        verbosity: args.connect.verbosity(),
        argv: Vec::new(),
        leaving: Leaving::AtOnce,
        job_name: job_name(&found.target, &args.connect),
    };
    let attachment = Attachment::wait(found.job.clone());
    found.show(attachment, options)
}
