//! What surfaces are made of. How each looks is in `surface`, `facade` and `bodywork`.

use super::math::Rgb;

/// The material of a primitive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Material {
    /// Asphalt with its markings; texture u is metres from the middle of the street, v metres along it.
    Road,
    /// A stone edge.
    Kerb,
    /// Slabs, in the street's coordinates.
    Pavement,
    /// Grass, in the street's coordinates.
    Grass,
    /// A house front; the number is that of its [`Facade`].
    Facade(u16),
    /// Tiles or tar.
    Roof { color: Rgb },
    /// A wall of bricks or blocks.
    Masonry { color: Rgb },
    /// Anything of one colour; `gloss` 0…1 is how much it mirrors.
    Plain { color: Rgb, gloss: f32 },
    /// Cloth: one colour with folds.
    Cloth { color: Rgb },
    /// Foliage.
    Leaves { color: Rgb },
    /// Part of a vehicle; the number is that of its [`Vehicle`].
    Body(u16, Part),
    /// Tyre and rim, texture centred; the radius in metres.
    Wheel { radius: f32 },
    /// Window glass.
    Glass,
    /// Front of a traffic sign of `size` metres, texture centred.
    Sign { kind: SignKind, size: f32, seed: u32 },
    /// Front of a traffic light, texture from its lower left corner.
    Signals { state: Signal, width: f32, height: f32 },
    /// Glass of a street lamp.
    StreetLamp,
    /// A lit advertisement or the window of a shelter.
    Poster { seed: u32, width: f32, height: f32 },
}

/// Parts of vehicles that are painted on faces. Texture u is metres from the tail (sides) or from the middle (front, rear),
/// v metres above the road.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Sheet metal between sill and belt line.
    Side,
    /// The side of the cabin, with its windows.
    CabinSide,
    /// Bumper, lamps and grille.
    Front,
    /// Bumper, lamps and plate.
    Rear,
    /// Bonnet, roof and boot lid.
    Top,
    /// Windscreen.
    Windscreen,
    /// Rear window.
    RearWindow,
    /// Everything dark below.
    Under,
    /// Load box of a truck: its long sides.
    CargoSide,
    /// Load box of a truck: its doors.
    CargoRear,
    /// Load box of a truck: the wall above the cab.
    CargoFront,
}

/// What kind of vehicle a body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VehicleKind {
    /// Cars of all shapes.
    Car,
    /// Trucks.
    Truck,
    /// Buses.
    Bus,
    /// Trams.
    Tram,
}

/// Colours and measures that the faces of one vehicle share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vehicle {
    pub kind: VehicleKind,
    pub color: Rgb,
    /// Second colour: stripes, load box.
    pub accent: Rgb,
    pub length: f32,
    pub half_width: f32,
    pub height: f32,
    /// Height of the belt line, where the windows begin.
    pub belt: f32,
    /// Ahead coordinates of the wheels, and their radius.
    pub axles: [f32; 2],
    pub wheel: f32,
    /// Ahead coordinates of windscreen foot, roof front, roof rear, rear window foot.
    pub cabin: [f32; 4],
    /// Lamps can be on: it is not parked.
    pub moving: bool,
    /// Brake lamps are on.
    pub braking: bool,
    pub seed: u32,
}

/// What a house front shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facade {
    pub wall: Wall,
    pub color: Rgb,
    pub trim: Rgb,
    /// Colour of shop front, doors or shutters.
    pub accent: Rgb,
    pub width: f32,
    pub height: f32,
    /// Height of the ground floor and of those above, in metres.
    pub ground: f32,
    pub storey: f32,
    /// Distance of window axes, window width and height, in metres.
    pub bay: f32,
    pub window: (f32, f32),
    pub shop: bool,
    pub shutters: bool,
    /// A side or back wall: few windows.
    pub blind: bool,
    pub seed: u32,
}

/// What walls are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wall {
    /// Painted plaster.
    Plaster,
    /// Bricks.
    Brick,
    /// Large slabs.
    Panel,
    /// Ashlar.
    Stone,
    /// A curtain of glass.
    Glass,
}

/// Traffic signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignKind {
    /// White with a red rim, a number in it.
    Limit,
    /// Red with a white bar.
    NoEntry,
    /// White triangle with a red rim, tip up.
    Warning,
    /// The same, tip down.
    GiveWay,
    /// Red octagon.
    Stop,
    /// Blue disc with a white arrow.
    Mandatory,
    /// Blue square with a white letter or pedestrian.
    Information,
    /// Blue or green board with white lines of text.
    Direction,
    /// Its gray back.
    Back,
}

/// Which lamp of a traffic light is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Stop.
    Red,
    /// About to change.
    Amber,
    /// Go.
    Green,
}
