//! Pictures in the terminal, two pixels to a character.

use std::fmt::Write;
use std::io;

use console::Term;
use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};

/// The upper half of a character in the colour of the text, the lower in that behind it.
const HALF: char = '▀';
/// Takes all colours back.
const PLAIN: &str = "\x1b[0m";

/// Shows a picture as wide as it is, or as the terminal.
pub(crate) fn show(picture: &RgbImage) -> io::Result<()> {
    let (_, columns) = Term::stdout().size();
    let full = std::env::var("COLORTERM").is_ok_and(|text| text == "truecolor" || text == "24bit");
    let text = drawn(picture, u32::from(columns), if full { exact } else { nearest });
    io::Write::write_all(&mut io::stdout(), text.as_bytes())
}

/// The lines of a picture, of up to so many columns, in the colours that `colour` names.
fn drawn(picture: &RgbImage, columns: u32, colour: fn(Rgb<u8>) -> String) -> String {
    let (width, height) = picture.dimensions();
    let columns = columns.clamp(1, width);
    let rows = (u64::from(height) * u64::from(columns)).div_ceil(u64::from(width)) as u32;
    let picture = resize(picture, columns, rows, FilterType::Triangle);
    let mut text = String::new();
    for y in (0..rows).step_by(2) {
        for x in 0..columns {
            let above = colour(*picture.get_pixel(x, y));
            let below = picture.get_pixel_checked(x, y + 1).map(|pixel| colour(*pixel));
            let below = below.map_or_else(|| "49".to_owned(), |colour| format!("48;{colour}"));
            write!(text, "\x1b[38;{above};{below}m{HALF}").expect("a text grows");
        }
        text += PLAIN;
        text.push('\n');
    }
    text
}

fn exact(Rgb([red, green, blue]): Rgb<u8>) -> String {
    format!("2;{red};{green};{blue}")
}

/// The nearest of xterm's 6 x 6 x 6 colours, for terminals without more.
fn nearest(Rgb(pixel): Rgb<u8>) -> String {
    /// Brightness of the levels of each channel.
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let level = |value: u8| (0..6).min_by_key(|&level| LEVELS[level].abs_diff(value)).unwrap_or(0);
    let [red, green, blue] = pixel.map(level);
    format!("5;{}", 16 + 36 * red + 6 * green + blue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripes(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |_, y| Rgb([if y % 2 == 0 { 250 } else { 0 }, 100, 0]))
    }

    #[test]
    fn two_rows_make_a_line() {
        let both = "\x1b[38;2;250;100;0;48;2;0;100;0m▀";
        let one = "\x1b[38;2;250;100;0;49m▀";
        let expected = format!("{both}{both}{PLAIN}\n{one}{one}{PLAIN}\n");
        assert_eq!(drawn(&stripes(2, 3), 80, exact), expected);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for (width, height, columns, lines) in [(300, 200, 60, 20), (5, 5, 0, 1), (1, 9, 80, 5)] {
            let text = drawn(&stripes(width, height), columns, nearest);
            let widths: Vec<usize> = text.lines().map(|line| line.matches(HALF).count()).collect();
            assert_eq!(widths, vec![columns.clamp(1, width) as usize; lines]);
        }
    }

    #[test]
    fn colours_of_the_cube_are_the_nearest() {
        let found = [[0; 3], [255; 3], [255, 0, 0], [100, 140, 47]].map(|c| nearest(Rgb(c)));
        assert_eq!(found, ["5;16", "5;231", "5;196", "5;64"].map(str::to_owned));
    }
}
