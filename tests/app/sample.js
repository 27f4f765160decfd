/* Node's side of test_playground.py: runs a sampler from given states, and gives the states where it ends.

   In: {sampler: path, seed, and either blocks, or machines, temperature, held, sweeps and starts: for each chain the
   values of all units, layer by layer}
   Out: {blocks: their numbers, or ends: as the starts, and uniforms: the generator's first numbers} */
"use strict";

const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const { Random, Sampler, decode } = require(given.sampler);

function chain(sampler, start) {
  let next = 0;
  for (const layer of sampler.states) for (let i = 0; i < layer.length; i++) layer[i] = start[next++];
  sampler.run(given.sweeps, given.temperature);
  return sampler.states.flatMap((layer) => Array.from(layer));
}

const found = {};
if (given.blocks) found.blocks = given.blocks.map((block) => Array.from(decode(block)));
if (given.machines) {
  const sampler = new Sampler(given.machines, given.seed);
  sampler.held.set(given.held);
  found.ends = given.starts.map((start) => chain(sampler, start));
}
const random = new Random(given.seed);
found.uniforms = Array.from({ length: 10000 }, () => random.uniform());
process.stdout.write(JSON.stringify(found));
