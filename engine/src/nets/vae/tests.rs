use super::*;
use crate::testing::Draws;

fn tiny() -> Vae {
    let config = VaeConfig {
        channels: 3,
        latent_channels: 4,
        widths: vec![8, 16],
        blocks_per_level: 1,
        groups: 4,
        attention: true,
        quant: true,
        scale: 0.5,
        shift: 0.1,
        squares: None,
        tiny: None,
    };
    config.init(&Device::flex()).map(&mut Draws::new(0, 0.2))
}

#[test]
fn odd_images_lose_half_a_cell_and_scaling_inverts() {
    let vae = tiny();
    let image = Draws::new(0, 1.0).tensor([1, 3, 13, 10]);
    let latent = vae.encode(image).mean;
    assert_eq!(latent.dims(), [1, 4, 6, 5]);
    assert!(vae.unscale(vae.scale(latent.clone())).all_close(latent, None, Some(1e-6)));
}

#[test]
fn tiles_cover_everything_and_agree_in_the_mean() {
    let vae = tiny();
    let latent = Draws::new(0, 1.0).tensor([1, 4, 11, 7]);
    let (whole, tiled) = (vae.decode(latent.clone()), vae.decode_tiled(latent.clone(), 8));
    assert_eq!(whole.dims(), tiled.dims());
    let difference: f32 = (whole.clone() - tiled).abs().mean().into_scalar();
    let scale: f32 = whole.clone().abs().mean().into_scalar();
    assert!(difference < 0.5 * scale, "{difference} of {scale}");
    let one_tile = vae.decode_tiled(latent, 11);
    assert!(one_tile.equal(whole).all().into_scalar::<bool>());
}

/// Two tiles, of rows 0 to 8 and 3 to 11: each as decoded alone where it is alone, and between the two where
/// both are, from all of the one to all of the other.
#[test]
fn tiles_blend_where_they_overlap() {
    let vae = tiny();
    let latent = Draws::new(0, 1.0).tensor([1, 4, 11, 7]);
    let tiled = vae.decode_tiled(latent.clone(), 8);
    let [first, last] = [0, 3].map(|row| vae.decode(latent.clone().narrow(2, row, 8)));
    let factor = vae.config.factor();
    let rows = |image: &Tensor<4>, from: usize, to: usize| {
        image.clone().narrow(2, from * factor, (to - from) * factor)
    };
    let near = |a: Tensor<4>, b: Tensor<4>| a.all_close(b, Some(1e-5), Some(1e-5));
    assert!(near(rows(&tiled, 0, 3), rows(&first, 0, 3)));
    assert!(near(rows(&tiled, 8, 11), rows(&last, 5, 8)));

    let (first, last) = (rows(&first, 3, 8), rows(&last, 0, 5));
    let apart: f32 = (first.clone() - last.clone()).abs().mean().into_scalar();
    assert!(apart > 1e-2, "the tiles agree anyway: {apart}");
    let height = 5 * factor;
    let share: Vec<f32> = (0..height)
        .map(|row| {
            // Rising and falling over the two rows of cells that tiles have in common at least.
            let edge = (2 * factor) as f32;
            let [up, down] = [row + 1, height - row].map(|far| (far as f32 / edge).min(1.0));
            up / (up + down)
        })
        .collect();
    let share = Tensor::<1>::from_floats(share.as_slice(), &Device::flex());
    let share = share.reshape([1, 1, height as i64, 1]);
    let expected = first.clone() + (last - first) * share;
    assert!(near(rows(&tiled, 3, 8), expected));
}
