// Colours of effects: those of the figures (palettes.py). No effect is the paper, whatever it is.

const dark = window.matchMedia("(prefers-color-scheme: dark)");
let printing = false;
const isDark = () => dark.matches && !printing;

// On paper, whatever the screen has: what is printed is drawn before the rules for paper hold.
const PRINTED = { "--paper": "#ffffff", "--ink": "#000000", "--line": "#bbbbbb", "--accent": "#542788" };
const styleOf = (name) =>
  printing ? PRINTED[name] : getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// On dark paper strength is light: the same hues the other way around, without their darkest.
const onPaper = (ramp) => (isDark() ? [styleOf("--paper"), ...ramp.slice(1, -1).reverse()] : ramp);

const STEPS = 96; // shades of each sign

// From an effect to its colour; `reach` is the strongest one of either sign.
function colouring(mediator, reach) {
  const { helps, hurts } = page.mediators[mediator].colours;
  const sign = chosenMetric().lower_helps ? -1 : 1;
  const ramps = [onPaper(helps), onPaper(hurts)].map((ramp) => ramp.map(parts));
  return (value) => {
    const ramp = ramps[value * sign >= 0 ? 0 : 1];
    const strength = Math.round((Math.min(Math.abs(value) / reach, 1) || 0) * STEPS) / STEPS;
    const place = strength * (ramp.length - 1);
    const below = Math.min(Math.floor(place), ramp.length - 2);
    const mixed = ramp[below].map((one, part) => Math.round(one + (ramp[below + 1][part] - one) * (place - below)));
    return `rgb(${mixed.join(",")})`;
  };
}
