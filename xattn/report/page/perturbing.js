// The picture at a step of a curve: its pixels changed in the metric's order, to what the metric changes them to.

// Each pixel's (or cell's) rank by the mask, highest first, rounded to 2⁻¹⁶, or to bytes without their fraction; among
// equals the fixed order that the block "order-N" holds.
async function ranksOf(map, kind, curve, height, width) {
  const mask = maskOf(map, kind);
  const values = curve.lowRes ? mask.values : resized(mask, height, width, true);
  const order = new Int32Array(bytes(await block(`order-${values.length}`)).buffer);
  const levels = levelsOf(values).map((level) => (curve.asBytes ? Math.floor((level * 255) / 65536 + 1 / 256) : level));
  const starts = new Int32Array(65538);
  for (const level of levels) starts[65536 - level + 1] += 1; // descending
  for (let i = 1; i < starts.length; i++) starts[i] += starts[i - 1];
  const ranks = new Int32Array(values.length);
  for (const place of order) ranks[place] = starts[65536 - levels[place]]++;
  return ranks;
}

function levelsOf(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const span = high - low;
  const spread = span < 1 / 64; // narrow masks are spread, as the metric does
  const contrast = span > 1e-6 * Math.max(Math.abs(low), Math.abs(high));
  return Int32Array.from(values, (value) => {
    const scaled = spread ? (contrast ? (value - low) / span : 0) : value;
    return Math.min(65536, Math.max(0, Math.round(scaled * 65536)));
  });
}

// After each step, how many pixels (or cells) have changed.
function cutsOf(curve, total, width) {
  const step = curve.step || (curve.lowRes ? Math.ceil(total / 196) : 8 * width);
  const cuts = [];
  for (let at = 0; at < total; at += step) cuts.push(at);
  cuts.push(total);
  return cuts;
}

const pixelsOf = (uri, width, height) =>
  new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => {
      const canvas = el("canvas", { width, height });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.imageSmoothingQuality = "high";
      context.drawImage(picture, 0, 0, width, height);
      resolve(context.getImageData(0, 0, width, height));
    };
    picture.onerror = reject;
    picture.src = uri;
  });

// The picture with all of its pixels changed.
function baselineOf(image, curve, mean) {
  const { width, height } = image;
  const colour = curve.colour === "mean" ? mean.map((value) => 255 * value) : [0, 0, 0];
  const found = new ImageData(width, height);
  if (curve.kind === "colour") {
    for (let i = 0; i < width * height; i++) found.data.set([colour[0], colour[1], colour[2], 255], 4 * i);
    return found;
  }
  const kernel = curve.kernels[String(height)] || Object.values(curve.kernels)[0];
  const half = kernel.length >> 1;
  const line = new Float32Array(width * height);
  for (let channel = 0; channel < 3; channel++) {
    line.fill(0);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        let sum = 0;
        for (let k = Math.max(0, half - y); k < Math.min(kernel.length, height + half - y); k++)
          sum += kernel[k] * (image.data[4 * ((y + k - half) * width + x) + channel] - colour[channel]);
        line[y * width + x] = sum;
      }
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        let sum = 0;
        for (let k = Math.max(0, half - x); k < Math.min(kernel.length, width + half - x); k++)
          sum += kernel[k] * line[y * width + x + k - half];
        found.data[4 * (y * width + x) + channel] = sum + colour[channel];
      }
  }
  for (let i = 3; i < found.data.length; i += 4) found.data[i] = 255;
  return found;
}

// Everything that the steps of one curve of one picture need.
async function perturbed(data, item, column, metric) {
  const about = index.classifiers[index.columns[column].classifier];
  const [height, width] = about.size;
  const curve = index.metrics[metric].curve;
  const map = rawMap(data, column);
  const uri = data.pictures[about.crop];
  if (!map || !uri) return null;
  if ((curve.lowRes && map.reduced) || REPLACED[curve.kind]) return null;
  const image = await pixelsOf(uri, width, height);
  const base = baselineOf(image, curve, about.mean);
  const kind = index.columns[column].kind;
  const usable = isDegenerate(column, item) ? { ...map, values: new Float32Array(map.values.length) } : map;
  const ranks = await ranksOf(usable, kind, curve, height, width);
  const cuts = cutsOf(curve, ranks.length, width);
  const [before, after] = curve.insertion ? [base, image] : [image, base];
  const approximate = map.reduced || (Math.max(map.h, map.w) === 64 && Math.max(height, width) > 64);
  return { width, height, before, after, ranks, cuts, map, lowRes: curve.lowRes, approximate };
}

function drawStep(canvas, steps, step) {
  const { width, height, before, after, ranks, cuts, map, lowRes } = steps;
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  const [from, to, shown] = [before, after, image].map((one) => new Uint32Array(one.data.buffer));
  const cut = cuts[Math.min(step, cuts.length - 1)];
  if (!lowRes) for (let i = 0; i < shown.length; i++) shown[i] = ranks[i] < cut ? to[i] : from[i];
  else
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const cell = Math.floor((y * map.h) / height) * map.w + Math.floor((x * map.w) / width);
        shown[y * width + x] = ranks[cell] < cut ? to[y * width + x] : from[y * width + x];
      }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function curveOf(data, column, metric) {
  const found = data.curves.find((one) => one[0] === column && one[1] === metric);
  if (!found) return null;
  const whole = new Uint16Array(bytes(found[3]).buffer);
  return { shares: index.shares[found[2]], p: Array.from(whole, (value) => (value === 65535 ? null : value / 65534)) };
}
