//! Line plots as pictures.

use std::sync::Once;

use image::RgbImage;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::error::{Error, Result};

/// Size of a plot in pixels, without a legend.
const SIZE: (u32, u32) = (900, 520);
/// Height of a line of the legend in pixels.
const LINE: u32 = 20;
/// The smoothed curve looks so many times shorter than the whole to either side.
const SMOOTHING: f64 = 50.0;
/// Most labels along the steps.
const LABELS: f64 = 10.0;

/// Area of a plot in memory.
type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

/// The picture of a height that `draw` makes on a white area.
fn picture(
    height: u32,
    draw: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<RgbImage> {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // Fails only for a font that cannot be parsed; drawing text then reports it.
        let _ = register_font("sans-serif", FontStyle::Normal, ttf_noto_sans::REGULAR);
    });
    let fault = |reason: String| Error::Plot { reason };
    let mut pixels = vec![0; (SIZE.0 * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (SIZE.0, height)).into_drawing_area();
        let whole = || {
            area.fill(&WHITE)?;
            draw(&area)?;
            Ok(area.present()?)
        };
        whole().map_err(|error: Box<dyn std::error::Error>| fault(error.to_string()))?;
    }
    RgbImage::from_raw(SIZE.0, height, pixels).ok_or_else(|| fault("a buffer too small".into()))
}

/// Points that belong together.
#[derive(Debug, Clone)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// Place, value, and half the length of its interval.
    pub points: Vec<[f64; 3]>,
}

/// Series of points with their intervals, joined in order of their places, over a legend.
///
/// # Errors
/// If there is nothing to draw.
pub fn scatter(series: &[Series], [x_name, y_name]: [&str; 2]) -> Result<RgbImage> {
    let fault = |reason: String| Error::Plot { reason };
    let all: Vec<[f64; 3]> = series.iter().flat_map(|series| series.points.clone()).collect();
    if all.is_empty() || all.iter().flatten().any(|value| !value.is_finite()) {
        return Err(fault("no points, or some that are not finite".into()));
    }
    let range = |values: &dyn Fn(&[f64; 3]) -> [f64; 2]| {
        let low = all.iter().map(|point| values(point)[0]).fold(f64::INFINITY, f64::min);
        let high = all.iter().map(|point| values(point)[1]).fold(f64::NEG_INFINITY, f64::max);
        let margin = 0.06 * (high - low).max(1e-9);
        low - margin..high + margin
    };
    let (xs, ys) = (range(&|p| [p[0], p[0]]), range(&|p| [p[1] - p[2], p[1] + p[2]]));
    // The legend adds to the height, so that any number of series leaves room for the plot.
    let height = SIZE.1 + LINE * series.len() as u32;
    picture(height, |area| {
        let (above, legend) = area.split_vertically(SIZE.1);
        let mut chart = ChartBuilder::on(&above)
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(xs, ys)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_desc(x_name)
            .y_desc(y_name)
            .label_style(("sans-serif", 15))
            .draw()?;
        for (i, Series { name, points }) in series.iter().enumerate() {
            let colour = Palette99::pick(i).stroke_width(2);
            let mut points = points.clone();
            points.sort_by(|a, b| a[0].total_cmp(&b[0]));
            let line = points.iter().map(|point| (point[0], point[1]));
            chart.draw_series(LineSeries::new(line.clone(), colour))?;
            chart.draw_series(line.map(|at| Circle::new(at, 4, colour.filled())))?;
            chart.draw_series(points.iter().map(|[x, y, margin]| {
                PathElement::new(vec![(*x, y - margin), (*x, y + margin)], colour)
            }))?;
            let top = i as i32 * LINE as i32;
            legend.draw(&PathElement::new(vec![(78, top + 9), (98, top + 9)], colour))?;
            legend.draw(&Text::new(name.clone(), (106, top), ("sans-serif", 15)))?;
        }
        Ok(())
    })
}

/// Loss over steps: every point, and a smoothed curve.
///
/// # Errors
/// If there is nothing to draw.
pub fn loss_curve(points: &[(f64, f64)]) -> Result<RgbImage> {
    let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    let points: Vec<(f64, f64)> = points.iter().filter(finite).copied().collect();
    let fault = |reason: String| Error::Plot { reason };
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Err(fault("no points".into()));
    };
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    // The first steps of a run are far above the rest and would flatten it.
    let mut sorted: Vec<f64> = points.iter().map(|p| p.1).collect();
    sorted.sort_by(f64::total_cmp);
    let high = sorted[(sorted.len() - 1) * 99 / 100].max(low + 1e-9);
    let margin = (high - low) * 0.05;

    picture(SIZE.1, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption("training loss", ("sans-serif", 22))
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(first.0..last.0.max(first.0 + 1.0), low - margin..high + margin)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_desc("step")
            .x_labels((last.0 - first.0).clamp(2.0, LABELS) as usize)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_desc("loss")
            .label_style(("sans-serif", 15))
            .draw()?;
        let (light, strong) = (RGBColor(170, 200, 235), RGBColor(20, 80, 160).stroke_width(2));
        let key =
            |style: ShapeStyle| move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), light))?
            .label("line of the log")
            .legend(key(light.into()));
        chart
            .draw_series(LineSeries::new(smoothed(&points), strong))?
            .label("smoothed")
            .legend(key(strong));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(RGBColor(225, 225, 225))
            .label_font(("sans-serif", 15))
            .draw()?;
        Ok(())
    })
}

/// The mean of exponential averages from the left and from the right, each corrected for its start, so that the curve
/// does not lag.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let length = points.len() as f64 / SMOOTHING;
    let keep = length / (length + 1.0);
    let average = |values: &mut dyn Iterator<Item = f64>| -> Vec<f64> {
        let (mut sum, mut weight) = (0.0, 0.0);
        let next = |y: f64| {
            sum = sum * keep + y * (1.0 - keep);
            weight = weight * keep + 1.0 - keep;
            sum / weight
        };
        values.map(next).collect()
    };
    let right = average(&mut points.iter().map(|p| p.1));
    let left = average(&mut points.iter().rev().map(|p| p.1));
    let both = right.into_iter().zip(left.into_iter().rev()).map(|(a, b)| (a + b) / 2.0);
    points.iter().map(|p| p.0).zip(both).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_leaves_ink_of_both_colours() {
        let points: Vec<(f64, f64)> = (0..200)
            .map(|i| (f64::from(i), 1.0 / f64::from(i + 1) + f64::from(i % 3) * 0.01))
            .collect();
        let plot = loss_curve(&points).expect("points");
        let count = |near: [u8; 3]| plot.pixels().filter(|pixel| pixel.0 == near).count();
        assert!(count([20, 80, 160]) > 200, "{}", count([20, 80, 160]));
        assert!(plot.pixels().filter(|pixel| pixel.0[0] < 100).count() > 800, "no text");
        assert!(loss_curve(&[]).is_err());
    }

    #[test]
    fn any_number_of_series_leaves_room_for_the_plot() {
        let one = |i: usize| Series { name: format!("{i}"), points: vec![[i as f64, 1.0, 0.5]] };
        let height = |count| {
            let series: Vec<Series> = (0..count).map(one).collect();
            scatter(&series, ["x", "y"]).expect("points").height()
        };
        assert_eq!(height(40) - height(2), 38 * LINE);
    }

    #[test]
    fn smoothing_keeps_constants_and_does_not_lag() {
        let flat: Vec<(f64, f64)> = (0..9).map(|i| (f64::from(i), 3.0)).collect();
        assert!(smoothed(&flat).iter().all(|(_, y)| (y - 3.0).abs() < 1e-12));
        let ramp: Vec<(f64, f64)> = (0..400).map(|i| (f64::from(i), f64::from(i))).collect();
        let inside = &smoothed(&ramp)[100..300];
        assert!(inside.iter().all(|(x, y)| (x - y).abs() < 1e-3), "{inside:?}");
        let noise: Vec<(f64, f64)> = (0..400).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!(smoothed(&noise)[100..300].iter().all(|(_, y)| (y - 0.5).abs() < 0.1));
    }
}
