//! Lists of images and their classes or captions: `metadata.jsonl` and `metadata.csv` of Hugging Face, `dataset.json`
//! of StyleGAN and EDM.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use csv_core::ReadFieldResult;
use serde::Deserialize;
use serde_json::Value;

use super::Annotation;
use super::files::Known;
use crate::error::{Error, Result};
use crate::text::read_text;

/// Their names.
pub(super) const LISTS: [&str; 3] = ["metadata.jsonl", "metadata.csv", "dataset.json"];
/// Names of the field of an image's path, of that of its class, and of that of its captions.
const FILE: &[&str] = &["file_name", "file"];
const CLASS: &[&str] = &["label", "class"];
const CAPTION: &[&str] = &["text", "caption", "prompt"];

/// A line of a list.
struct Entry {
    /// Where it stands, for people.
    place: String,
    file: String,
    /// Its class, or its captions.
    told: Vec<String>,
    /// What stands in the columns that were asked for.
    columns: Vec<Option<String>>,
}

/// The images that a list in `folder` names, with the class or the captions of each and what stands in these columns, in the
/// order of paths.
///
/// # Errors
/// A list that is broken, an image without a class or a caption, twice, or outside the folder; a column that is nowhere.
pub(super) fn read(
    folder: &Path,
    name: &str,
    annotation: Annotation,
    columns: &[String],
) -> Result<Vec<Known>> {
    let list = folder.join(name);
    let text = read_text(&list)?;
    let entries = match name {
        "metadata.jsonl" => lines(&text, annotation, columns),
        "metadata.csv" => table(&text, annotation, columns),
        _ if annotation == Annotation::Captions => Err("it holds classes, no captions".into()),
        _ => pairs(&text, columns),
    };
    let fault = |reason: String| Error::Dataset { path: list.clone(), reason };
    let entries = entries.map_err(fault)?;
    for (i, column) in columns.iter().enumerate() {
        if entries.iter().all(|entry| entry.columns[i].is_none()) {
            return Err(fault(format!("no `{column}`")));
        }
    }
    let mut files: BTreeMap<PathBuf, Known> = BTreeMap::new();
    for Entry { place, file, told, columns } in entries {
        let path = inside(folder, &file)
            .ok_or_else(|| fault(format!("{place}: `{file}` leaves the folder")))?;
        let told: Vec<String> = told.iter().map(|text| text.trim().to_owned()).collect();
        if told.is_empty() || told.iter().any(String::is_empty) {
            let what = annotation.one();
            return Err(fault(format!("{place}: the {what} of `{file}` is empty")));
        }
        let known = Known { path: path.clone(), told, columns };
        if files.insert(path, known).is_some() {
            return Err(fault(format!("{place}: `{file}` is listed twice")));
        }
    }
    Ok(files.into_values().collect())
}

/// The path of a listed file; `./` in front is as good as nothing, `\` stands for `/`.
fn inside(folder: &Path, file: &str) -> Option<PathBuf> {
    let literal = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
        && folder.join(file).is_file();
    let file = if literal { file.to_owned() } else { file.replace('\\', "/") };
    let mut path = folder.to_owned();
    for part in Path::new(&file).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => (),
            _ => return None,
        }
    }
    (path != folder).then_some(path)
}

/// The first field of a row that has one of these names.
fn field<T>(row: impl Fn(&str) -> Option<T>, names: &[&str]) -> Option<T> {
    names.iter().find_map(|name| row(name))
}

/// Names of the field that is looked for.
fn wanted(annotation: Annotation) -> &'static [&'static str] {
    match annotation {
        Annotation::Classes => CLASS,
        Annotation::Captions => CAPTION,
    }
}

/// What is wrong with a row that has fields of these names only.
fn nothing<'a>(
    place: &str,
    annotation: Annotation,
    fields: impl Iterator<Item = &'a str>,
) -> String {
    let fields: Vec<String> = fields.map(|name| format!("`{name}`")).collect();
    let advice = match annotation {
        Annotation::Classes => {
            "Captions make a model of texts: add labels, or take the list away, and sub-folders are classes"
        }
        Annotation::Captions => "Labels make a model of classes",
    };
    let (wanted, fields) = (wanted(annotation)[0], fields.join(", "));
    format!("{place}: no `{wanted}`, there is {fields}. {advice}")
}

/// `metadata.jsonl`: an object a line.
fn lines(text: &str, annotation: Annotation, columns: &[String]) -> Result<Vec<Entry>, String> {
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let entry = |(number, line): (usize, &str)| {
        let place = format!("line {}", number + 1);
        let row: serde_json::Map<String, Value> =
            serde_json::from_str(line).map_err(|error| format!("{place}: {error}"))?;
        let of = |name: &str| row.get(name).filter(|value| !value.is_null());
        let file = field(of, FILE)
            .and_then(Value::as_str)
            .ok_or_else(|| format!("{place}: no `file_name`"))?;
        let names = wanted(annotation);
        let told = field(of, names).or_else(|| field(|name| row.get(name), names));
        let fields = row.keys().map(String::as_str);
        let told = told.ok_or_else(|| nothing(&place, annotation, fields))?;
        let told = match annotation {
            Annotation::Classes => vec![class_text(&place, told)?],
            Annotation::Captions => captions(&place, told)?,
        };
        let columns = columns.iter().map(|name| of(name).map(plain));
        Ok(Entry { file: file.to_owned(), told, columns: columns.collect(), place })
    };
    numbered.map(entry).collect()
}

/// A value as people write it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A class as a name or a number.
fn class_text(place: &str, class: &Value) -> Result<String, String> {
    match class {
        Value::String(name) => Ok(name.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("{place}: the label is {other}, expected a name or a number")),
    }
}

/// A caption, or a list of some.
fn captions(place: &str, told: &Value) -> Result<Vec<String>, String> {
    let wrong = |found: &Value| format!("{place}: a caption is {found}, expected a text");
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| wrong(value));
    match told {
        Value::Array(texts) => texts.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

/// `metadata.csv`: names of the columns, then a row an image, separated by what separates the names.
fn table(text: &str, annotation: Annotation, columns: &[String]) -> Result<Vec<Entry>, String> {
    let first = text.lines().next().unwrap_or_default();
    let delimiter = [b',', b';', b'\t'].into_iter().find(|&byte| first.contains(byte as char));
    let mut rows = rows(text, delimiter.unwrap_or(b',')).into_iter();
    let names = rows.next().unwrap_or_default().1;
    let column = |name: &str| names.iter().position(|column| column.trim() == name);
    let file = field(column, FILE).ok_or("line 1: no column `file_name`")?;
    let fields = names.iter().map(String::as_str);
    let told =
        field(column, wanted(annotation)).ok_or_else(|| nothing("line 1", annotation, fields))?;
    let further: Vec<Option<usize>> = columns.iter().map(|name| column(name)).collect();
    let entry = |(line, row): (u64, Vec<String>)| {
        let cell = |at: &Option<usize>| Some(row.get((*at)?)?.trim().to_owned());
        let columns = further.iter().map(|at| cell(at).filter(|text| !text.is_empty())).collect();
        let place = format!("line {line}");
        match (row.get(file), row.get(told)) {
            (Some(file), Some(told)) => {
                Ok(Entry { place, file: file.trim().to_owned(), told: vec![told.clone()], columns })
            }
            _ => Err(format!("{place}: {} columns, expected {}", row.len(), names.len())),
        }
    };
    rows.map(entry).collect()
}

/// The fields of each row, with the number of the line in which it ends.
fn rows(text: &str, delimiter: u8) -> Vec<(u64, Vec<String>)> {
    let mut reader = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
    // No field is longer than the text.
    let (mut field, mut filled) = (vec![0; text.len() + 1], 0);
    let (mut rest, mut row, mut rows) = (text.as_bytes(), Vec::new(), Vec::new());
    loop {
        let line = reader.line();
        let (result, read, written) = reader.read_field(rest, &mut field[filled..]);
        rest = &rest[read..];
        filled += written;
        match result {
            ReadFieldResult::Field { record_end } => {
                row.push(String::from_utf8_lossy(&field[..filled]).into_owned());
                filled = 0;
                if record_end {
                    rows.push((line, std::mem::take(&mut row)));
                }
            }
            // Without further input, the next call sees the end.
            ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull => (),
            ReadFieldResult::End => return rows,
        }
    }
}

/// `dataset.json`: pairs of a path and a number, under `labels`.
fn pairs(text: &str, columns: &[String]) -> Result<Vec<Entry>, String> {
    #[derive(Deserialize)]
    struct Pairs {
        labels: Option<Vec<(String, Value)>>,
    }
    let pairs: Pairs = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let labels = pairs.labels.ok_or("`labels` is empty: the images have no classes")?;
    let entry = |(number, (file, class)): (usize, (String, Value))| {
        let place = format!("pair {}", number + 1);
        let columns = vec![None; columns.len()];
        Ok(Entry { told: vec![class_text(&place, &class)?], columns, file, place })
    };
    labels.into_iter().enumerate().map(entry).collect()
}
