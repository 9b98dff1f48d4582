//! The file of a head, which is not trusted.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use half::f16;
use safetensors::{Dtype, SafeTensors};

use super::{Material, Target};
use crate::Error;
use crate::shape::V3;

/// Most bytes of a file.
const MOST: u64 = 64 << 20;
/// Most names in its list of targets.
const MOST_TARGETS: usize = 10_000;
/// No coordinate is farther out, even moved: heads are some units high.
const FARTHEST: f32 = 100.0;

/// What a file holds, all indices in range and all numbers finite.
pub(super) struct Raw {
    pub(super) vertices: Vec<V3>,
    pub(super) triangles: Vec<[u32; 3]>,
    pub(super) materials: Vec<Material>,
    /// Of each corner of each triangle: where it is in a mask, from 0 to 1.
    pub(super) uv: Vec<[[f32; 2]; 3]>,
    /// Ears, lips, eyelids, the inside of the mouth.
    pub(super) masks: [Mask; 4],
    pub(super) targets: Vec<Target>,
}

/// A square of values from 0 to 1.
pub(super) struct Mask {
    side: usize,
    values: Vec<u8>,
}

impl Mask {
    pub(super) fn at(&self, [u, v]: [f32; 2]) -> f32 {
        // A cast of a float stops at the ends of its type.
        let cell = |part: f32| ((part * self.side as f32) as usize).min(self.side - 1);
        f32::from(self.values[cell(1.0 - v) * self.side + cell(u)]) / 255.0
    }
}

pub(super) fn read(path: &Path) -> Result<Raw, Error> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::file(path))?;
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(Error::file(path))?;
    parsed(&bytes).map_err(|reason| Error::Head { path: path.into(), reason })
}

fn parsed(bytes: &[u8]) -> Result<Raw, String> {
    if bytes.len() as u64 > MOST {
        return Err(format!("larger than {MOST} bytes"));
    }
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let vertices = points(&file, "verts", Dtype::F32)?;
    let triangles = corners(&file, "tris", vertices.len())?;
    let places = floats(&file, "uv", Dtype::F32, 2)?;
    let of_uv = corners(&file, "tri_uv", places.len() / 2)?;
    let codes = tensor(&file, "tri_material", Dtype::U8, 1)?;
    if codes.len() != triangles.len() || of_uv.len() != triangles.len() {
        return Err("materials or places in masks are not as many as triangles".into());
    }
    let material =
        |code: &u8| Material::of(*code).ok_or_else(|| format!("tri_material: unknown {code}"));
    let place = |at: u32| [places[2 * at as usize], places[2 * at as usize + 1]];
    let names = header.metadata().as_ref().and_then(|pairs| pairs.get("targets"));
    let names = names.ok_or("no list of targets in its metadata")?;
    Ok(Raw {
        materials: codes.iter().map(material).collect::<Result<_, _>>()?,
        uv: of_uv.iter().map(|corners| corners.map(place)).collect(),
        masks: [
            mask(&file, "ears")?,
            mask(&file, "lips")?,
            mask(&file, "eyelids")?,
            mask(&file, "inside-mouth")?,
        ],
        targets: targets(&file, names, vertices.len())?,
        vertices,
        triangles,
    })
}

/// The bytes of a tensor `[any, columns]`, or `[any]` for one column.
fn tensor<'a>(
    file: &SafeTensors<'a>,
    name: &str,
    dtype: Dtype,
    columns: usize,
) -> Result<&'a [u8], String> {
    let found = file.tensor(name).map_err(|_| format!("{name}: missing"))?;
    let fits = match found.shape() {
        [_] => columns == 1,
        [_, second] => *second == columns,
        _ => false,
    };
    if !fits || found.dtype() != dtype {
        let (shape, held) = (found.shape(), found.dtype());
        return Err(format!(
            "{name}: {held:?} {shape:?}, expected {dtype:?} with {columns} columns"
        ));
    }
    Ok(found.data())
}

fn floats(
    file: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    columns: usize,
) -> Result<Vec<f32>, String> {
    let bytes = tensor(file, name, dtype, columns)?;
    let values: Vec<f32> = if dtype == Dtype::F16 {
        bytes.as_chunks().0.iter().map(|value| f16::from_le_bytes(*value).to_f32()).collect()
    } else {
        bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
    };
    match values.iter().find(|value| value.is_nan() || value.abs() >= FARTHEST) {
        Some(value) => Err(format!("{name}: {value}, expected less than {FARTHEST}")),
        None => Ok(values),
    }
}

fn points(file: &SafeTensors<'_>, name: &str, dtype: Dtype) -> Result<Vec<V3>, String> {
    let values = floats(file, name, dtype, 3)?;
    Ok(values.as_chunks().0.iter().map(|[x, y, z]| V3::new(*x, *y, *z)).collect())
}

fn corners(file: &SafeTensors<'_>, name: &str, below: usize) -> Result<Vec<[u32; 3]>, String> {
    let values = indices(tensor(file, name, Dtype::U16, 3)?, name, below)?;
    Ok(values.as_chunks().0.to_vec())
}

fn indices(bytes: &[u8], name: &str, below: usize) -> Result<Vec<u32>, String> {
    let values = bytes.as_chunks().0.iter().map(|value| u32::from(u16::from_le_bytes(*value)));
    let checked = values.map(|value| {
        let known = (value as usize) < below;
        known.then_some(value).ok_or_else(|| format!("{name}: {value}, expected less than {below}"))
    });
    checked.collect()
}

fn mask(file: &SafeTensors<'_>, name: &str) -> Result<Mask, String> {
    let name = format!("mask.{name}");
    let found = file.tensor(&name).map_err(|_| format!("{name}: missing"))?;
    match (found.dtype(), found.shape()) {
        (Dtype::U8, [rows, columns]) if rows == columns && *rows > 0 => {
            Ok(Mask { side: *rows, values: found.data().to_vec() })
        }
        (dtype, shape) => Err(format!("{name}: {dtype:?} {shape:?}, expected a square of U8")),
    }
}

fn targets(file: &SafeTensors<'_>, names: &str, vertices: usize) -> Result<Vec<Target>, String> {
    let names: Vec<String> =
        serde_json::from_str(names).map_err(|error| format!("list of targets: {error}"))?;
    let index = indices(tensor(file, "target.index", Dtype::U16, 1)?, "target.index", vertices)?;
    let delta = points(file, "target.delta", Dtype::F16)?;
    let ends = tensor(file, "target.offset", Dtype::I32, 1)?.as_chunks().0;
    let ends: Vec<usize> = ends.iter().map(|end| i32::from_le_bytes(*end) as usize).collect();
    if !ends.is_sorted() {
        return Err("target.offset: does not ascend".into());
    }
    if names.len() > MOST_TARGETS || ends.len() != names.len() + 1 || index.len() != delta.len() {
        return Err("names, offsets, indices and deltas of targets do not go together".into());
    }
    let moves = |(name, ends): (String, &[usize])| {
        let range = ends[0]..ends[1];
        let known = (index.get(range.clone()), delta.get(range));
        let (Some(index), Some(delta)) = known else {
            return Err(format!("target.offset: {ends:?} of {name}, of {} moves", delta.len()));
        };
        Ok((name, index.iter().copied().zip(delta.iter().copied()).collect()))
    };
    names.into_iter().zip(ends.windows(2)).map(moves).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_errors() {
        let good = std::fs::read(crate::HEAD).unwrap();
        assert!(parsed(&good).is_ok());
        for length in [0, 7, 8, 100, 5_000, good.len() / 2, good.len() - 1] {
            assert!(parsed(&good[..length]).is_err(), "{length}");
        }
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let mut random = crate::Random::new(&[3]);
        for _ in 0..40 {
            let mut bad = good.clone();
            for _ in 0..20 {
                let at = random.uniform(0.0, header as f32) as usize;
                bad[at] = random.uniform(0.0, 256.0) as u8;
            }
            // Refused or read, but nothing else.
            let _ = parsed(&bad);
        }
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let good = std::fs::read(crate::HEAD).unwrap();
        let changed = |name: &str, value: u8| {
            let mut bytes = good.clone();
            let file = SafeTensors::deserialize(&good).unwrap();
            let start =
                file.tensor(name).unwrap().data().as_ptr() as usize - good.as_ptr() as usize;
            bytes[start..start + 4].fill(value);
            parsed(&bytes).err().unwrap_or_default()
        };
        for name in [
            "tris",
            "tri_uv",
            "tri_material",
            "target.index",
            "target.offset",
            "target.delta",
            "verts",
            "uv",
        ] {
            assert!(changed(name, 0xff).starts_with(name), "{name}: {}", changed(name, 0xff));
        }
    }
}
