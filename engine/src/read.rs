//! Reading what a device has computed, which is when its failures are heard of: a GPU works behind its caller, and may be out of
//! memory, or lost.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::error::{Error, Result};

/// The values of a tensor, in its type.
///
/// # Errors
/// [`Error::Device`] for anything that failed on the way to them.
pub fn data<const D: usize>(tensor: Tensor<D>) -> Result<TensorData> {
    tensor.try_into_data().map_err(|error| failure(&error.to_string()))
}

/// The values of a tensor in f32, in row-major order.
///
/// # Errors
/// As [`data`].
pub fn numbers<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = data(tensor)?.convert_dtype(DType::F32);
    Ok(data.try_into_vec().expect("converted to f32"))
}

/// The only value of a tensor.
///
/// # Errors
/// As [`data`].
///
/// # Panics
/// If there are several, or none.
pub fn number<const D: usize>(tensor: Tensor<D>) -> Result<f32> {
    let numbers = numbers(tensor)?;
    assert_eq!(numbers.len(), 1, "one value");
    Ok(numbers[0])
}

/// Waits until a device has done what it was given.
///
/// # Errors
/// As [`data`].
pub fn wait(device: &Device) -> Result<()> {
    device.sync().map_err(|error| failure(&error.to_string()))
}

/// The error of a device for what burn says of it.
pub fn failure(said: &str) -> Error {
    Error::Device { reason: cause(said) }
}

/// The innermost cause, which burn writes last, before where it was: one line each, under headings.
fn cause(text: &str) -> String {
    let is_place = |line: &str| {
        let number = line.split_once(": ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        number || line.starts_with("at ") || line == "No backtrace available"
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut causes =
        lines.filter(|line| !line.ends_with(':') && *line != "Backtrace" && !is_place(line));
    let last = causes.next_back().unwrap_or("it does not say why");
    last.strip_prefix("Unknown: ").unwrap_or(last).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_the_last_line_that_is_no_place() {
        let nested = "An error happened during execution\nCaused by:\n  Several failures at once\nCaused by:\n  \
            An IO error happened\nCaused by:\n  can't allocate buffer of size: 442368000\n\
            No backtrace available\nAsked at:\nNo backtrace available";
        assert_eq!(cause(nested), "can't allocate buffer of size: 442368000");
        let lost = "The device is poisoned\nCaused by:\n  Unknown: Out of memory\nBacktrace:\n   \
            0: std::backtrace::Backtrace::capture\n             at /src/backtrace.rs:10\n";
        assert_eq!(cause(lost), "Out of memory");
        assert_eq!(cause(""), "it does not say why");
    }

    #[test]
    fn values_are_read_in_row_major_order() {
        let tensor = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &Device::flex());
        assert_eq!(numbers(tensor.clone().transpose()).expect("read"), [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(number(tensor.sum()).expect("read"), 10.0);
        wait(&Device::flex()).expect("nothing to wait for");
    }
}
