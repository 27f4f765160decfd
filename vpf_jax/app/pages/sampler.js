/* Gibbs sampling of a stack of layered Boltzmann machines, for a page or for Node; knows nothing of a page.

   The laws are those of vpf_jax (sample/gibbs.py, stack.py), at a temperature T that divides all parameters:

     one machine       sweeps as in the library: odd layers, then even ones; the units of a layer with weights inside go
                       one after another. Held pixels keep their values, so that the chain leaves the distribution of
                       all other units given the held pixels invariant.
     several machines  a deep belief network: the top machine is a Boltzmann machine, and each machine below it says how
                       its lower layer is drawn given its upper one. With nothing held, the top machine is swept, and
                       one pass down draws the layers below it. With pixels held, every hidden unit is drawn given all
                       other hidden units and the held pixels, the layers below the top machine weighing what they
                       explain; the free pixels are drawn last. That leaves the network's distribution given the held
                       pixels invariant: it is no pass up with the pixels put back.

   A chain that is invariant may still take long to forget its start. Not here: training, temperatures that change by
   themselves, machines below the top one with other than two layers or with weights inside their lower layer. */
"use strict";

const VPF = (() => {
  /* xoshiro128** of D. Blackman and S. Vigna, seeded by splitmix32. */
  class Random {
    constructor(seed) {
      let x = seed >>> 0;
      this.state = Uint32Array.from({ length: 4 }, () => {
        x = (x + 0x9e3779b9) >>> 0;
        let y = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
        y = Math.imul(y ^ (y >>> 15), 0x735a2d97);
        return y ^ (y >>> 15);
      });
    }

    /* In [0, 1), a multiple of 2^-32. */
    uniform() {
      const s = this.state;
      const product = Math.imul(s[1], 5);
      const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
      const shifted = s[1] << 9;
      s[2] ^= s[0];
      s[3] ^= s[1];
      s[1] ^= s[2];
      s[0] ^= s[3];
      s[2] ^= shifted;
      s[3] = (s[3] << 11) | (s[3] >>> 21);
      return result / 4294967296;
    }
  }

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }

  const NUMBERS = {
    float32: (buffer) => new Float32Array(buffer),
    float16: (buffer) => Float32Array.from(new Uint16Array(buffer), half),
    int8: (buffer, scale) => Float32Array.from(new Int8Array(buffer), (level) => level * scale),
  };

  /* The numbers of an array as `playground.stored` has written it: row by row; of a symmetric matrix all of it. */
  function decode(block) {
    const numbers = NUMBERS[block.format](bytes(block.data).buffer, block.scale);
    if (!block.symmetric) return numbers;
    const n = block.shape[0];
    const full = new Float32Array(n * n);
    let next = 0;
    for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) full[i * n + j] = full[j * n + i] = numbers[next++];
    return full;
  }

  function decodeMachine(stored) {
    const blocks = (name) => stored[name].map((block) => block && decode(block));
    const weights = blocks("weights");
    return {
      sizes: stored.biases.map((block) => block.shape[0]),
      units: stored.units,
      biases: blocks("biases"),
      weights,
      backward: stored.backward ? blocks("backward") : weights,
      intra: blocks("intra"),
    };
  }

  /* The field of every unit of a layer, but for what comes from inside it. Weights lie row by row, a row per unit of the
     lower layer. */
  function fieldsFromOutside(machine, states, layer) {
    const z = Float64Array.from(machine.biases[layer]);
    if (layer > 0) addUp(machine.weights[layer - 1], states[layer - 1], z);
    if (layer + 1 < machine.sizes.length) addDown(machine.backward[layer], states[layer + 1], z);
    return z;
  }

  function addUp(weights, x, z) {
    for (let i = 0, row = 0; i < x.length; i++, row += z.length) {
      const value = x[i];
      if (value) for (let j = 0; j < z.length; j++) z[j] += value * weights[row + j];
    }
  }

  function addDown(weights, y, z) {
    for (let i = 0, row = 0; i < z.length; i++, row += y.length) {
      let sum = 0;
      for (let j = 0; j < y.length; j++) sum += weights[row + j] * y[j];
      z[i] += sum;
    }
  }

  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  const softplus = (x) => (x > 0 ? x : 0) + Math.log1p(Math.exp(-Math.abs(x)));

  /* What the lower layer of a two-layer machine says of the units of the upper one, below the top machine: the log
     probability of its observed values given the upper layer, as units of that change. */
  class Evidence {
    constructor(machine, lower, upper, observed, temperature) {
      const [kind, above] = machine.units;
      this.weights = machine.backward[0];
      this.upper = upper;
      this.step = above.high - above.low;
      this.middle = (above.high + above.low) / 2;
      this.scale = (kind.high - kind.low) / temperature;
      this.z = Float64Array.from(machine.biases[0]);
      addDown(this.weights, upper, this.z);
      this.places = [];
      for (let i = 0; i < lower.length; i++) if (!observed || observed[i]) this.places.push(i);
      this.share = lower.map((value) => (value - kind.low) / (kind.high - kind.low));
      this.normalisers = this.z.map((z) => softplus(this.scale * z));
    }

    /* Log odds of a unit's upper value against its lower one, by the observed values alone. */
    logOdds(unit) {
      const { weights, z, scale, share, normalisers } = this;
      const m = this.upper.length;
      const towards = this.upper[unit] > this.middle ? -1 : 1;
      let change = 0;
      for (const i of this.places) {
        const by = towards * this.step * weights[i * m + unit];
        if (by) change += share[i] * scale * by - softplus(scale * (z[i] + by)) + normalisers[i];
      }
      return towards * change;
    }

    /* To be called when a unit of the upper layer has changed by this much. */
    moved(unit, change) {
      const m = this.upper.length;
      for (const i of this.places) {
        this.z[i] += change * this.weights[i * m + unit];
        this.normalisers[i] = softplus(this.scale * this.z[i]);
      }
    }
  }

  /* Draws the units of a layer that are not held, given the rest; gives the probability of each one's upper value. */
  function resample(machine, states, layer, random, { temperature, held, evidence, outside }) {
    const { low, high } = machine.units[layer];
    const x = states[layer];
    const z = outside || fieldsFromOutside(machine, states, layer);
    const intra = machine.intra[layer];
    const n = x.length;
    if (intra) addUp(intra, x, z);
    const probability = new Float64Array(n);
    for (let j = 0; j < n; j++) {
      if (held && held[j]) {
        probability[j] = x[j] === high ? 1 : 0;
        continue;
      }
      const odds = ((high - low) * z[j]) / temperature + (evidence ? evidence.logOdds(j) : 0);
      probability[j] = sigmoid(odds);
      const value = random.uniform() < probability[j] ? high : low;
      const change = value - x[j];
      if (!change) continue;
      x[j] = value;
      if (intra) for (let i = 0; i < n; i++) z[i] += change * intra[j * n + i];
      if (evidence) evidence.moved(j, change);
    }
    return probability;
  }

  /* A stack, its state (one array per layer, pixels first) and its generator of random numbers. */
  class Sampler {
    constructor(stored, seed) {
      this.machines = stored.map(decodeMachine);
      this.random = new Random(seed);
      this.top = this.machines[this.machines.length - 1];
      /* Number of the lowest layer of the top machine, in the stack. */
      this.base = this.machines.length - 1;
      const below = this.machines.slice(0, -1);
      this.sizes = [...below.map((machine) => machine.sizes[0]), ...this.top.sizes];
      this.units = [...below.map((machine) => machine.units[0]), ...this.top.units];
      this.states = this.sizes.map((n, layer) => new Float64Array(n).fill(this.units[layer].low));
      this.held = new Uint8Array(this.sizes[0]);
      /* Of the upper value of each unit, when it was last drawn. */
      this.probabilities = this.sizes.map((n) => new Float64Array(n));
    }

    get anyHeld() {
      return this.held.includes(1);
    }

    /* A fresh start: the top layer drawn from probabilities of its upper values, or all values alike; then down. */
    start(prior, temperature) {
      const layer = this.sizes.length - 1;
      const { low, high } = this.units[layer];
      const x = this.states[layer];
      if (layer === 0) {
        for (let j = 0; j < x.length; j++) if (!this.held[j]) x[j] = this.random.uniform() < 0.5 ? high : low;
      } else {
        for (let j = 0; j < x.length; j++) x[j] = this.random.uniform() < (prior ? prior[j] : 0.5) ? high : low;
        for (let i = layer - 1; i >= this.base; i--) this.drawFromAbove(i, temperature);
        this.descend(temperature);
      }
    }

    /* Draws every hidden layer given the one below it, inputs from above left out: where chains start from pixels. */
    climb(temperature) {
      for (let layer = 1; layer < this.sizes.length; layer++) {
        const [machine, own] = this.machineOf(layer);
        const outside = Float64Array.from(machine.biases[own]);
        addUp(machine.weights[own - 1], this.states[layer - 1], outside);
        this.draw(machine, own, layer, { temperature, outside });
      }
    }

    /* Sweeps, then the layers that no later draw depends on. */
    run(sweeps, temperature) {
      for (let i = 0; i < sweeps; i++) this.sweep(temperature);
      this.descend(temperature);
    }

    sweep(temperature) {
      const layers = this.top.sizes.length;
      const posterior = this.base > 0 && this.anyHeld;
      for (const parity of [1, 0]) {
        for (let own = parity; own < layers; own += 2) {
          const layer = this.base + own;
          const held = layer === 0 ? this.held : null;
          const evidence = posterior && own === 0 ? this.evidence(layer, temperature) : null;
          this.draw(this.top, own, layer, { temperature, held, evidence });
        }
      }
      if (!posterior) return;
      for (let layer = this.base - 1; layer > 0; layer--) {
        this.draw(this.machines[layer], 0, layer, { temperature, evidence: this.evidence(layer, temperature) });
      }
    }

    /* Draws the layers below those that a sweep has drawn, each given the one above. */
    descend(temperature) {
      const highest = this.anyHeld ? Math.min(this.base - 1, 0) : this.base - 1;
      for (let layer = highest; layer >= 0; layer--) {
        const held = layer === 0 ? this.held : null;
        this.draw(this.machines[layer], 0, layer, { temperature, held });
      }
    }

    draw(machine, own, layer, options) {
      const first = layer - own;
      const states = this.states.slice(first, first + machine.sizes.length);
      this.probabilities[layer] = resample(machine, states, own, this.random, options);
    }

    /* Inside the top machine, inputs from below left out. */
    drawFromAbove(layer, temperature) {
      const own = layer - this.base;
      const outside = Float64Array.from(this.top.biases[own]);
      addDown(this.top.backward[own], this.states[layer + 1], outside);
      const held = layer === 0 ? this.held : null;
      this.draw(this.top, own, layer, { temperature, held, outside });
    }

    evidence(layer, temperature) {
      const observed = layer === 1 ? this.held : null;
      const [lower, upper] = [this.states[layer - 1], this.states[layer]];
      return new Evidence(this.machines[layer - 1], lower, upper, observed, temperature);
    }

    /* The machine in which a layer has the one below it, and the layer's number there. */
    machineOf(layer) {
      return layer <= this.base ? [this.machines[layer - 1], 1] : [this.top, layer - this.base];
    }
  }

  return { Random, Sampler, decode };
})();

if (typeof module !== "undefined") module.exports = VPF;
