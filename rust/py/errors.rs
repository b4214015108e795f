//! The one place where errors cross: four kinds become the four exceptions of `ovsvhost.errors`.

use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::error::Error;

/// The Python exception for `error`.
pub(super) fn raise(py: Python<'_>, error: Error) -> PyErr {
    let made = match &error {
        Error::Config(text) => make(py, "ConfigError", (text.as_str(),)),
        Error::Peer(text) => make(py, "PeerError", (text.as_str(),)),
        Error::Bug(text) => make(py, "InternalError", (text.as_str(),)),
        Error::Kernel { source, .. } => {
            make(py, "KernelError", (source.raw_os_error().unwrap_or(0), error.to_string()))
        }
    };
    made.unwrap_or_else(|import_error| import_error)
}

fn make<'py>(py: Python<'py>, name: &str, args: impl pyo3::call::PyCallArgs<'py>) -> PyResult<PyErr> {
    let class = py.import("ovsvhost.errors")?.getattr(name)?.cast_into::<PyType>()?;
    Ok(PyErr::from_value(class.call1(args)?))
}
