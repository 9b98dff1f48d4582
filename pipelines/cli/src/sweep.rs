//! `pyrograph sweep`: quality against compute.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use pyrograph::engine::diffusion::parse_sampler;
use pyrograph::eval::compare;
use pyrograph::image::{check_folder_of, check_output_path, write_image};
use pyrograph::patches::PatchPlan;
use pyrograph::plot::{Series, scatter};
use pyrograph::weights::{folder_of, sha256_of, write_whole};
use pyrograph::{ClassPipeline, Guidance, Request};

use crate::common::{Common, parse_steps, whole};
use crate::eval::{Judged, Judging, MOST_IMAGES, make};
use crate::patches::parse_share;

/// First line of the table.
const HEADER: &str = "model,weights,schedule,steps,sampler,cfg_scale,seed,images,dtype,reference,features,resamples,\
                      compute,gmacs,seconds,fd,fd_margin,kid,kid_margin,precision,recall,density,coverage,copies";

/// Digits of the fingerprint of the weights in it.
const HASH: usize = 10;
/// And of that of the reference images.
const IDENTITY: usize = 16;

#[derive(Args)]
pub(crate) struct Sweep {
    #[command(flatten)]
    judging: Judging,
    /// Model that makes the images
    #[arg(long, short)]
    model: PathBuf,
    /// Images per point
    #[arg(long, short = 'n', default_value_t = 5000, value_parser = whole(2, MOST_IMAGES))]
    count: usize,
    /// Patch sizes, separated by `;`: shares of compute such as 60%, or schedules such as 8:12,4:8 or 8:12,4:8/8
    #[arg(long, value_delimiter = ';', default_value = "100%")]
    schedules: Vec<String>,
    /// Sampling steps, separated by commas [default: the model's]
    #[arg(long, value_delimiter = ',', value_parser = parse_steps)]
    steps: Vec<usize>,
    /// Guidance scales, separated by commas [default: the model's]
    #[arg(long, value_delimiter = ',')]
    cfg_scale: Vec<f64>,
    /// Solvers, separated by commas [default: the model's]
    #[arg(long, value_delimiter = ',')]
    sampler: Vec<String>,
    /// Seed of the first image of every point
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    judged: Judged,
    /// Table to write; points that it holds already are not made again
    #[arg(long, short, default_value = "sweep.csv")]
    output: PathBuf,
    /// Plot of the Fréchet distance [default: beside the table]
    #[arg(long)]
    plot: Option<PathBuf>,
    /// What it is plotted against
    #[arg(long, value_enum, default_value = "operations")]
    against: Against,
}

/// What images cost.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Against {
    /// Multiplications with an addition per image
    Operations,
    /// Seconds per image
    Seconds,
}

impl Against {
    /// Name of the axis, and column of the table.
    fn axis(self) -> [&'static str; 2] {
        match self {
            Self::Operations => ["GMAC per image", "gmacs"],
            Self::Seconds => ["seconds per image", "seconds"],
        }
    }
}

pub(crate) fn run(args: &Sweep, common: &Common) -> anyhow::Result<()> {
    args.judging.check()?;
    check_folder_of(&args.output)?;
    let plot = args.plot.clone().unwrap_or_else(|| args.output.with_extension("png"));
    check_output_path(&plot)?;
    let opened = common.open()?;
    let net = args.judging.open(&opened.device, common)?;
    let pipeline = args.judged.open(&args.model, &opened)?;
    let points = points(args, &pipeline)?;
    let mut table = read(&args.output)?;

    let (reference, real) = args.judging.reference(&net, pipeline.size(), common)?;
    let (judge, resamples) = (&net.fingerprint()[..HASH], args.judging.resamples);
    let identity = sha256_of(reference.identity().to_string().as_bytes());
    let judged = format!("{},{judge},{resamples}", &identity[..IDENTITY]);
    let count = points.len();
    for (i, (key, request)) in points.into_iter().enumerate() {
        let start = format!("{key},{judged},");
        if table.iter().any(|row| row.starts_with(&start)) {
            common.say(&format!("{} of {count}: {key}: in the table already", i + 1));
            continue;
        }
        let each = |images: &[image::RgbImage]| net.rows(images);
        let (rows, making) = make(&pipeline, &request, args.count, &reference, common, each)?;
        let (scores, _) = compare(&real, &rows, args.judging.resamples)?;
        let (fd, kid, sets) = (scores.frechet, scores.kernel, scores.coverage);
        common.say(&format!("{} of {count}: {key}: {fd:.2}", i + 1));
        let numbers = [
            Some(making.compute.share),
            Some(making.compute.gmacs),
            Some(making.seconds),
            Some(fd.value),
            fd.margin,
            Some(kid.value),
            kid.margin,
            Some(sets.precision),
            Some(sets.recall),
            Some(sets.density),
            Some(sets.coverage),
            Some(scores.copies),
        ];
        // Without resamples the cells of the margins are empty.
        let cell = |number: &Option<f64>| number.map(|number| number.to_string());
        let numbers: Vec<String> =
            numbers.iter().map(|number| cell(number).unwrap_or_default()).collect();
        // Another sweep may have written to it meanwhile, or be about to.
        let _held = hold(&args.output);
        table = read(&args.output)?;
        table.push(start + &numbers.join(","));
        let text = format!("{HEADER}\n{}\n", table.join("\n"));
        // Whole or not at all, so that a sweep can go on after any interruption.
        write_whole(&args.output, text.as_bytes())?;
    }
    let [axis, column] = args.against.axis();
    let curves = series(&table, pipeline.config().net.dit.patch, column)?;
    write_image(&plot, &scatter(&curves, [axis, "Fréchet distance"])?, &[])?;
    common.say(&format!("{} and {}", args.output.display(), plot.display()));
    Ok(())
}

/// Every combination, with what names it in the table.
fn points(args: &Sweep, pipeline: &ClassPipeline) -> anyhow::Result<Vec<(String, Request<usize>)>> {
    let (net, defaults) = (&pipeline.config().net.dit, &pipeline.config().defaults);
    let weights = &pipeline.origin().weights[..HASH];
    let name = pipeline.origin().name.replace([',', '"', '\n', '\r'], " ");
    let or =
        |given: &[usize], own: usize| if given.is_empty() { vec![own] } else { given.to_vec() };
    let scales = match args.cfg_scale.as_slice() {
        [] => vec![defaults.cfg_scale],
        given => given.to_vec(),
    };
    let samplers: Vec<Option<&String>> = match args.sampler.as_slice() {
        [] => vec![None],
        given => given.iter().map(Some).collect(),
    };
    let mut points = Vec::new();
    for sampler in samplers {
        for &steps in &or(&args.steps, defaults.steps) {
            for &scale in &scales {
                for schedule in &args.schedules {
                    let mut request = Request {
                        seed: args.seed,
                        steps: Some(steps),
                        guidance: Guidance { scale: Some(scale), ..Guidance::default() },
                        batch: Some(args.judged.batch()),
                        ..Request::default()
                    };
                    if let Some(name) = sampler {
                        let (sampler, spacing) = parse_sampler(name)?;
                        (request.sampler, request.spacing) = (Some(sampler), spacing);
                    }
                    request.patches = match parse_share(schedule) {
                        // What a student has, too.
                        Ok(1.0) => None,
                        Ok(share) => Some(PatchPlan::for_compute(net, net.size, share, steps)?),
                        Err(_) => Some(PatchPlan::parse(schedule, steps)?),
                    };
                    let prompts = vec![0; args.judged.batch().min(args.count)];
                    pipeline.resolve(&Request { prompts, ..request.clone() })?;
                    let key = [
                        name.clone(),
                        weights.to_owned(),
                        schedule.replace(',', " "),
                        steps.to_string(),
                        request.settings(defaults).sampler.to_string(),
                        scale.to_string(),
                        args.seed.to_string(),
                        args.count.to_string(),
                        args.judged.dtype().to_string(),
                    ];
                    points.push((key.join(","), request));
                }
            }
        }
    }
    Ok(points)
}

/// Keeps other sweeps from changing the tables beside `table`, where folders have locks.
fn hold(table: &Path) -> Option<File> {
    let folder = File::open(folder_of(table)).ok()?;
    folder.lock().ok().map(|()| folder)
}

/// The rows of an earlier table.
fn read(path: &Path) -> anyhow::Result<Vec<String>> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
        Ok(text) => match text.lines().next() {
            Some(HEADER) => Ok(text.lines().skip(1).map(str::to_owned).collect()),
            _ => bail!("{} is no table of a sweep, or of another version", path.display()),
        },
    }
}

/// A row of the table by the names of its columns.
struct Row<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Row<'a> {
    fn new(row: &'a str) -> Self {
        Self(HEADER.split(',').zip(row.split(',')).collect())
    }

    fn text(&self, name: &str) -> anyhow::Result<&'a str> {
        self.0.get(name).copied().with_context(|| format!("a row of the table has no {name}"))
    }

    fn number(&self, name: &str) -> anyhow::Result<f64> {
        let cell = self.text(name)?;
        cell.parse().with_context(|| format!("{name} `{cell}` in the table"))
    }
}

/// The points by what changes from one to the next: the share of steps with larger patches than the `native`
/// ones, in the first steps, those and guidance, or the last steps, or the number of steps alone. `column` names
/// their place. Names leave out what all rows have in common.
fn series(table: &[String], native: usize, column: &str) -> anyhow::Result<Vec<Series>> {
    let rows: Vec<Row<'_>> = table.iter().map(|row| Row::new(row)).collect();
    let differs = |name: &&str| {
        let first = rows.first().map(|row| row.0.get(*name));
        rows.iter().any(|row| Some(row.0.get(*name)) != first)
    };
    let count = |name: &str| rows.iter().map(|row| row.0.get(name)).collect::<BTreeSet<_>>().len();
    // Several models may have one name.
    let model = if count("weights") > count("model") { "weights" } else { "model" };
    let different: Vec<&str> =
        [model, "sampler", "cfg_scale", "reference"].into_iter().filter(differs).collect();
    let mut found: BTreeMap<String, Vec<[f64; 3]>> = BTreeMap::new();
    for row in &rows {
        let margin = match row.text("fd_margin")? {
            "" => 0.0,
            _ => row.number("fd_margin")?,
        };
        let point = [row.number(column)?, row.number("fd")?, margin];
        let with = |start: String| -> anyhow::Result<String> {
            let mut name = start;
            for column in &different {
                let before = if *column == "cfg_scale" { ", cfg " } else { ", " };
                name = name + before + row.text(column)?;
            }
            Ok(name)
        };
        let (steps, schedule) = (row.number("steps")?, row.text("schedule")?.replace(' ', ","));
        let of_steps = |which: &str| with(format!("{steps} steps, larger patches {which}"));
        let fewer = || with("fewer steps".to_owned());
        let plan = PatchPlan::parse(&schedule, steps as usize);
        let (sizes, guide) =
            plan.map_or_else(|_| Default::default(), |plan| (plan.main, plan.guide));
        let names = match sizes.as_slice() {
            _ if sizes != guide => vec![of_steps("first and in guidance")?],
            _ if parse_share(&schedule).is_ok_and(|share| share == 1.0) => {
                vec![fewer()?, of_steps("first")?]
            }
            [(patch, _), .., (last, _)] if patch < last => vec![of_steps("last")?],
            [(patch, _)] if *patch == native => vec![fewer()?],
            _ => vec![of_steps("first")?],
        };
        names.into_iter().for_each(|name| found.entry(name).or_default().push(point));
    }
    // A point alone that is part of a curve, or was named before, is not named again.
    let mut named: Vec<[f64; 3]> =
        found.values().filter(|points| points.len() > 1).flatten().copied().collect();
    found.retain(|_, points| {
        let known = points.len() == 1 && named.contains(&points[0]);
        named.extend_from_slice(points);
        !known
    });
    Ok(found.into_iter().map(|(name, points)| Series { name, points }).collect())
}
