//! A chart as SVG. Both axes are logarithmic: what does not grow is level, what grows in proportion is as steep as the
//! grey line.

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;
use serde::Deserialize;
use serde_json::Value;

const SIZE: (u32, u32) = (640, 400);
const FONT: (&str, u32) = ("sans-serif", 14);
/// Told apart by people who see colours differently, too.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];
const PROPORTION: RGBColor = RGBColor(190, 190, 190);

/// Lines over sizes.
#[derive(Debug, Deserialize)]
pub(super) struct Chart {
    pub(super) name: String,
    title: String,
    x: String,
    y: String,
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    label: String,
    points: Vec<Point>,
}

#[derive(Debug, Deserialize)]
struct Point {
    at: f64,
    spread: Values,
}

#[derive(Debug, Deserialize)]
struct Values {
    median: f64,
    min: f64,
    max: f64,
}

impl Chart {
    pub(super) fn read(value: &Value) -> Result<Self> {
        let chart: Self = serde_path_to_error::deserialize(value)?;
        // It becomes a file's name.
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        ensure!(!chart.name.is_empty() && chart.name.chars().all(plain), "name: {:?} is not plain", chart.name);
        Ok(chart)
    }

    pub(super) fn draw(&self) -> Result<String> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            area.fill(&WHITE)?;
            self.draw_on(&area)?;
            area.present()?;
        }
        Ok(svg)
    }

    fn draw_on<'a>(&self, area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>) -> Result<()>
    where
        SVGBackend<'a>: DrawingBackend<ErrorType = std::io::Error>,
    {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let (left, right) = range(points().map(|point| point.at)).context("no points")?;
        let (low, high) =
            range(points().flat_map(|point| [point.spread.min, point.spread.max])).context("no points")?;
        ensure!(left > 0.0 && low > 0.0, "{}: nothing on logarithmic axes may be 0", self.name);
        let (bottom, top) = (low / 2.0, high * 2.0);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .margin_right(36)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((left..right.max(left * 2.0)).log_scale(), (bottom..top).log_scale())?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(&self.x).y_desc(&self.y).label_style(FONT).light_line_style(TRANSPARENT);
        mesh.x_label_formatter(&|value| value.to_string()).y_label_formatter(&|value| value.to_string()).draw()?;
        // Through the lowest first point, as far as there is room.
        let start = range(self.lines.iter().filter_map(|line| Some(line.points.first()?.spread.median)));
        if let Some((start, _)) = start {
            let end = right.min(left * top / start);
            let proportion = [(left, start), (end, start * end / left)];
            chart
                .draw_series(LineSeries::new(proportion, PROPORTION))?
                .label("in proportion")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], PROPORTION));
        }
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let medians = line.points.iter().map(|point| (point.at, point.spread.median));
            chart
                .draw_series(LineSeries::new(medians.clone(), colour.stroke_width(2)))?
                .label(&line.label)
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            chart.draw_series(medians.map(|point| Circle::new(point, 3, colour.filled())))?;
            let spreads = line.points.iter().map(|Point { at, spread }| [(*at, spread.min), (*at, spread.max)]);
            chart.draw_series(spreads.map(|ends| PathElement::new(ends, colour)))?;
        }
        let mut labels = chart.configure_series_labels();
        labels.position(SeriesLabelPosition::UpperLeft).background_style(WHITE.mix(0.8)).border_style(PROPORTION);
        labels.label_font(FONT).draw()?;
        Ok(())
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.map(|value| (value, value)).reduce(|(least, most), (value, _)| (least.min(value), most.max(value)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chart(least: f64) -> Value {
        let point = |at: usize, min: f64| json!({ "at": at, "spread": { "median": 5.0, "min": min, "max": 6.0 } });
        let lines = [json!({ "label": "a <request>", "points": [point(1, least), point(1000, 4.0)] })];
        json!({ "name": "a-b", "title": "Cost", "x": "pairs", "y": "us", "lines": lines })
    }

    #[test]
    fn a_chart_says_what_its_lines_and_axes_are() {
        let svg = Chart::read(&chart(4.0)).unwrap().draw().unwrap();
        for said in ["<svg", "Cost", "pairs", "us", "a &lt;request&gt;", "in proportion", "1000"] {
            assert!(svg.contains(said), "{said}: {svg}");
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_told() {
        assert!(Chart::read(&chart(0.0)).unwrap().draw().unwrap_err().to_string().contains("may be 0"));
        let mut elsewhere = chart(4.0);
        elsewhere["name"] = "../a".into();
        assert!(Chart::read(&elsewhere).is_err());
        let none = Chart::read(&json!({ "name": "a", "title": "", "x": "", "y": "", "lines": [] })).unwrap();
        assert!(none.draw().is_err());
    }
}
