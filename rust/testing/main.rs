// SPDX-License-Identifier: Apache-2.0
//! `vhost-frontend`: the project's own vhost-user front-end as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    ovsvhost::testing::cli::main(std::env::args().skip(1))
}
