"use strict";
(() => {
  // ---------------------------------------------------------------------------------------------- data and words
  const at = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(at(id).textContent);
  const WORDS = read("k-strings"), DATA = read("k-data"), ROWS = DATA.rows || [];
  const root = document.documentElement;
  const PAGE = 60, PRINTED = 60;
  const ORDERS = ["given", "wrong", "unsure", "suspicious"];
  const FLAGS = ["wrong", "unsure", "cue", "duplicate", "label?", "doubtful map"];
  root.classList.add("scripted");

  const t = (key, values = {}) => {
    const text = (WORDS[root.lang] || WORDS.en)[key] ?? key;
    return text.replace(/\{(\w+)\}/g, (all, name) => (name in values ? values[name] : all));
  };
  const said = (text) => (typeof text === "string" ? text : (text && (text[root.lang] || text.en)) || "");
  const flagName = (flag) => (FLAGS.includes(flag) ? t("flag." + flag) : flag);
  const kindName = (kind) => (kind === "ok" ? t("diag.ok") : kind);
  const known = (value) => typeof value === "number" && isFinite(value);
  const probability = (value) => {
    if (!known(value)) return "–";
    if (value > 0 && value < 0.005) return "< 0.01";
    return value >= 0.995 && value < 1 ? "> 0.99" : value.toFixed(2);
  };
  const numeral = (value) => (known(value) ? String(+value.toPrecision(3)) : "–");

  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "on") for (const [event, action] of Object.entries(value)) node.addEventListener(event, action);
      else if (name === "class") node.className = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };

  // ---------------------------------------------------------------------------------------------- pictures and maps
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const blocks = new Map(); // the blocks of JSON that were read last
  const block = (id) => {
    const held = blocks.get(id) || read(id);
    blocks.delete(id);
    blocks.set(id, held);
    if (blocks.size > 8) blocks.delete(blocks.keys().next().value);
    return held;
  };
  const pictureUrl = (number) => {
    const text = block("k-pictures-" + Math.floor(number / DATA.block))[number % DATA.block];
    return URL.createObjectURL(new Blob([bytes(text)], { type: "image/webp" }));
  };
  const mapsOf = (row) => block("k-maps-" + Math.floor(row / DATA.block))[row % DATA.block];
  const load = async (number) => {
    const image = new Image(), url = pictureUrl(number);
    image.src = url;
    try {
      await image.decode();
    } finally {
      URL.revokeObjectURL(url);
    }
    return image;
  };
  const TABLES = { 0: bytes(DATA.tables.sequential), 1: bytes(DATA.tables.diverging) };
  const levelsOf = (map) => (map.cells ||= bytes(map.d));

  // Cell centres in place: for every pixel along one side, the two cells beside it and the share of the second.
  const between = (pixels, cells) => {
    const first = new Int32Array(pixels), second = new Int32Array(pixels), share = new Float32Array(pixels);
    for (let i = 0; i < pixels; i++) {
      const x = Math.min(Math.max(((i + 0.5) * cells) / pixels - 0.5, 0), cells - 1);
      first[i] = Math.floor(x);
      second[i] = Math.min(first[i] + 1, cells - 1);
      share[i] = x - first[i];
    }
    return [first, second, share];
  };

  // As konkyo draws its other pictures: grey under strong values, colour over it, nothing where the map is weak.
  const blend = (pixels, width, height, map, opacity, threshold) => {
    const [wide, tall] = map.g, cells = levelsOf(map), table = TABLES[map.s || 0];
    const [x0, x1, xs] = between(width, wide), [y0, y1, ys] = between(height, tall);
    const zero = map.s ? 127 : 0, range = map.s ? 127 : 254, fade = Math.min(1, opacity / 0.7);
    for (let y = 0, p = 0; y < height; y++) {
      const up = y0[y] * wide, down = y1[y] * wide, below = ys[y];
      for (let x = 0; x < width; x++, p += 4) {
        const a = cells[up + x0[x]], b = cells[up + x1[x]], c = cells[down + x0[x]], d = cells[down + x1[x]];
        if (a === 255 || b === 255 || c === 255 || d === 255) {
          const near = cells[(below < 0.5 ? up : down) + (xs[x] < 0.5 ? x0[x] : x1[x])];
          if (near === 255) { // not finite: hatched
            pixels[p] = pixels[p + 1] = pixels[p + 2] = (x + y) % 8 < 4 ? 110 : 150;
          }
          continue;
        }
        const upper = a + (b - a) * xs[x], lower = c + (d - c) * xs[x], level = upper + (lower - upper) * below;
        const strength = Math.abs(level - zero) / range;
        if (strength < threshold) continue;
        const covered = Math.min(strength * 2, 1), grey = covered * fade, colour = covered * opacity;
        const light = 0.299 * pixels[p] + 0.587 * pixels[p + 1] + 0.114 * pixels[p + 2], k = Math.round(level) * 3;
        for (let channel = 0; channel < 3; channel++) {
          const base = pixels[p + channel] * (1 - grey) + light * grey;
          pixels[p + channel] = base * (1 - colour) + table[k + channel] * colour;
        }
      }
    }
  };

  // Draws picture and map into a canvas. Without a picture, the map alone, on white.
  const paint = (canvas, image, map, side, box) => {
    const size = image ? [image.naturalWidth, image.naturalHeight] : map ? map.g : [1, 1];
    const scale = side / Math.max(...size);
    const width = Math.max(1, Math.round(size[0] * scale)), height = Math.max(1, Math.round(size[1] * scale));
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    if (image) context.drawImage(image, 0, 0, width, height);
    else context.fillStyle = "#ffffff", context.fillRect(0, 0, width, height);
    if (map) {
      const data = context.getImageData(0, 0, width, height);
      blend(data.data, width, height, map, image ? state.opacity / 100 : 1, state.threshold / 100);
      context.putImageData(data, 0, 0);
    }
    if (box) {
      const [l, u, r, d] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height];
      context.lineWidth = Math.max(3, side / 80), context.strokeStyle = "#000000", context.strokeRect(l, u, r - l, d - u);
      context.lineWidth = Math.max(1.5, side / 160), context.strokeStyle = "#ffffff", context.strokeRect(l, u, r - l, d - u);
    }
  };
  const mapFor = (row, method) => {
    const index = (ROWS[row].m || []).findIndex((map) => map.n === method);
    return index < 0 ? null : mapsOf(row).m[index];
  };

  // Canvases that are on the page, each with what it shows; they are painted when they come near the window.
  const shows = new WeakMap(), live = new Set();
  const repaint = (canvas) => {
    const view = shows.get(canvas);
    if (view && (view.image || view.bare)) paint(canvas, view.image, view.map(), view.side, view.box);
  };
  const wake = async (canvas) => {
    const view = shows.get(canvas);
    live.add(canvas);
    if (!view || view.image || view.bare) return repaint(canvas);
    if (view.number === undefined) {
      view.bare = true;
    } else {
      if (view.loading) return undefined;
      view.loading = true;
      const image = await load(view.number);
      view.loading = false;
      if (!live.has(canvas)) return undefined; // it went far away meanwhile
      view.image = image;
    }
    return repaint(canvas);
  };
  const sleep = (canvas) => {
    live.delete(canvas);
    const view = shows.get(canvas);
    if (view) view.image = null;
    canvas.width = canvas.width ? 1 : 0;
  };
  const waking = new IntersectionObserver(
    (entries) => entries.forEach((entry) => entry.isIntersecting && wake(entry.target)), { rootMargin: "100% 0px" });
  const sleeping = new IntersectionObserver(
    (entries) => entries.forEach((entry) => !entry.isIntersecting && live.has(entry.target) && sleep(entry.target)),
    { rootMargin: "300% 0px" });
  const canvasOf = (label, view) => {
    const canvas = el("canvas", { role: "img", "aria-label": label, width: 1, height: 1 });
    shows.set(canvas, view);
    if (view.held) wake(canvas); // those of a dialog, whose scrolling the observers do not see
    else waking.observe(canvas), sleeping.observe(canvas);
    return canvas;
  };
  const forget = (container) => container.querySelectorAll("canvas").forEach((canvas) => {
    waking.unobserve(canvas), sleeping.unobserve(canvas), live.delete(canvas);
  });
  const repaintAll = () => live.forEach(repaint);

  // ---------------------------------------------------------------------------------------------- state
  const has = {
    decision: ROWS.some((row) => row.d), truth: ROWS.some((row) => row.t), asked: ROWS.some((row) => row.a),
    askedProbability: ROWS.some((row) => known(row.ap)), rank: ROWS.some((row) => row.ar),
    other: ROWS.some((row) => row.a && row.a !== row.d && row.a !== row.t), // else the asked class is in another column
    suspicion: ROWS.some((row) => known(row.s)), flags: ROWS.some((row) => row.f),
    maps: DATA.methods.length > 0, answer: ROWS.some((row) => row.w),
  };
  const orders = ORDERS.filter((order) => order === "given" || (order === "wrong" && has.truth && has.decision)
    || (order === "unsure" && has.decision) || (order === "suspicious" && has.suspicion));
  const DEFAULTS = {
    text: "", flags: [], kinds: [], truth: "", decision: "", pair: "", list: "", order: !DATA.ordered && orders[1] === "wrong" ? "wrong" : "given",
    column: "", down: false, method: DATA.methods[0] || "", opacity: 70, threshold: 0, theme: "", lang: "", open: "",
  };
  const state = structuredClone(DEFAULTS);
  let order = [], shown = 0, current = -1;

  const write = () => {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      if (String(value) !== String(DEFAULTS[name])) parameters.set(name, Array.isArray(value) ? value.join("\n") : value);
    }
    const text = parameters.toString();
    try { history.replaceState(null, "", text ? "#" + text : location.pathname + location.search); } catch { /* a page without an address */ }
  };
  const restore = () => {
    const parameters = new URLSearchParams(location.hash.slice(1));
    Object.assign(state, structuredClone(DEFAULTS));
    for (const [name, value] of parameters) {
      if (!(name in DEFAULTS)) continue;
      const like = DEFAULTS[name];
      if (Array.isArray(like)) state[name] = value ? value.split("\n") : [];
      else if (typeof like === "number") state[name] = Math.min(100, Math.max(0, Number(value) || 0));
      else if (typeof like === "boolean") state[name] = value === "true";
      else state[name] = value;
    }
    if (!orders.includes(state.order)) state.order = DEFAULTS.order;
    if (!DATA.methods.includes(state.method)) state.method = DEFAULTS.method;
    if (state.lang !== "ja" && state.lang !== "en") state.lang = "";
    if (!COLUMNS.some((column) => column.id === state.column && column.value)) state.column = "";
  };

  // ---------------------------------------------------------------------------------------------- filter and order
  const kindOf = (row) => {
    const map = (row.m || []).find((entry) => entry.n === state.method) || (row.m || [])[0];
    return map ? map.k || "ok" : "";
  };
  const haystack = (row) => (row.hay ||= [row.n, row.d, row.t, row.a, row.w ? DATA.answers[row.w[0]].q : "", ...(row.f || []), ...(row.f || []).map((f) => WORDS.ja["flag." + f] || "")]
    .join("\n").toLowerCase());
  const passes = (index) => {
    const row = ROWS[index];
    if (state.text && !state.text.toLowerCase().split(/\s+/).every((word) => haystack(row).includes(word))) return false;
    if (!state.flags.every((flag) => (row.f || []).includes(flag))) return false;
    if (state.kinds.length && !state.kinds.includes(kindOf(row))) return false;
    if (state.truth && row.t !== state.truth) return false;
    if (state.decision && row.d !== state.decision) return false;
    if (state.pair) {
      const pair = state.pair.split("\n");
      if (!(row.d !== row.t && pair.includes(row.t) && pair.includes(row.d))) return false;
    }
    if (state.list !== "" && !DATA.shortlists[+state.list]?.rows.includes(index)) return false;
    return true;
  };
  const wrongness = (row) => (row.t && row.d && row.t !== row.d ? 2 + (row.dp || 0) - (row.tp || 0) : (row.t && row.d ? -(row.dp || 0) : -2));
  const MEASURES = { wrong: wrongness, unsure: (row) => (known(row.dp) ? -row.dp : undefined), suspicious: (row) => row.s };
  const collator = new Intl.Collator(undefined, { numeric: true });
  const compare = (a, b) => {
    const empty = (value) => value === undefined || value === null || value === "";
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    return typeof a === "number" ? a - b : collator.compare(a, b);
  };
  const arrange = () => {
    order = ROWS.map((_, index) => index).filter(passes);
    const column = COLUMNS.find((entry) => entry.id === state.column);
    if (column) {
      const keys = order.map((index) => column.value(ROWS[index]));
      const sign = state.down ? -1 : 1, places = order.map((_, place) => place);
      places.sort((i, j) => {
        const missing = compare(keys[i], keys[j]);
        const either = [keys[i], keys[j]].some((key) => key === undefined || key === null || key === "");
        return (either ? missing : sign * missing) || order[i] - order[j];
      });
      order = places.map((place) => order[place]);
    } else if (state.list !== "") {
      const rank = new Map(DATA.shortlists[+state.list].rows.map((row, place) => [row, place]));
      order.sort((a, b) => rank.get(a) - rank.get(b));
    } else if (MEASURES[state.order]) {
      const measure = MEASURES[state.order];
      order.sort((a, b) => {
        const [first, second] = [measure(ROWS[a]), measure(ROWS[b])];
        return known(first) && known(second) ? second - first || a - b : known(second) - known(first) || a - b;
      });
    }
  };

  // ---------------------------------------------------------------------------------------------- answers in words
  const ANSWERS = DATA.answers || [], told = new Map(); // the rows of every answer
  ROWS.forEach((row, index) => row.w && told.set(row.w[0], [...(told.get(row.w[0]) || []), index]));
  const shortest = (rows) => rows.reduce((a, b) => (a === undefined || ROWS[b].w[1].length < ROWS[a].w[1].length ? b : a), undefined);
  // The answer, of which every word that has a map is a button that shows it; that of this row is pressed.
  const answerOf = (index) => {
    const [number, own] = ROWS[index].w, { q, p } = ANSWERS[number], rows = told.get(number);
    const whole = p.length > 1 ? rows.find((row) => ROWS[row].w[1].length === p.length) : undefined;
    const places = p.map((_, token) => shortest(rows.filter((row) => row !== whole && ROWS[row].w[1].includes(token))));
    const line = el("span", { class: "said", lang: "" });
    for (let at = 0, end; at < p.length; at = end) {
      for (end = at + 1; end < p.length && places[end] === places[at] && places[at] !== undefined;) end++;
      const text = p.slice(at, end).join(""), word = text.trim(), row = places[at];
      if (/^\s/.test(text)) line.append(" ");
      if (row === undefined || !word) line.append(el("span", { class: own.includes(at) ? "own" : null }, word));
      else line.append(el("button", { type: "button", class: "word" + (own.includes(at) ? " own" : ""), "aria-pressed": String(row === index),
        "aria-label": t("answer.word", { word }), on: { click: () => open(row, false, true) } }, word));
      if (/\s$/.test(text)) line.append(" ");
    }
    const all = whole === undefined ? null : el("button", { type: "button", class: "word all", "aria-pressed": String(whole === index), on: { click: () => open(whole, false, true) } }, t("answer.whole"));
    return el("div", { class: "answer", role: "group", "aria-label": t("answer") }, q ? el("span", { class: "asks" }, q) : null, line, all);
  };

  // ---------------------------------------------------------------------------------------------- the table
  const differs = (row) => row.d && row.t && row.d !== row.t;
  const COLUMNS = [
    { id: "name", key: "col.image", width: "minmax(13rem,2fr)", value: (row) => row.n },
    has.maps && { id: "map", key: "col.map", width: "100px" },
    has.decision && { id: "decision", key: "col.decision", width: "minmax(6.5rem,1.2fr)", value: (row) => row.d,
      cell: (row) => [el("span", { class: differs(row) ? "differs" : null }, row.d || "–")] },
    has.decision && { id: "probability", key: "col.probability", width: "3.6rem", n: true, value: (row) => row.dp, cell: (row) => [probability(row.dp)] },
    has.truth && { id: "true", key: "col.true", width: "minmax(6rem,1.1fr)", value: (row) => row.t,
      cell: (row) => [row.t || "–", known(row.tp) && differs(row) ? el("span", { class: "small" }, "P " + probability(row.tp)) : null] },
    has.answer && { id: "answer", key: "answer", width: "minmax(12rem,2.4fr)", value: (row) => (row.w ? ANSWERS[row.w[0]].p.join("") : ""),
      cell: (row, index) => [row.w ? answerOf(index) : "–"] },
    has.other && has.asked && { id: "asked", key: has.answer ? "col.words" : "col.asked", width: "minmax(6rem,1.1fr)", value: (row) => row.a, cell: (row) => [row.a || "–"] },
    has.other && has.askedProbability && { id: "asked_probability", key: "col.asked_probability", width: "4.4rem", n: true, value: (row) => row.ap, cell: (row) => [probability(row.ap)] },
    has.other && has.rank && { id: "rank", key: "col.rank", width: "3.2rem", n: true, value: (row) => row.ar, cell: (row) => [String(row.ar ?? "–")] },
    has.maps && { id: "diagnosis", key: "col.diagnosis", width: "5.6rem", value: kindOf,
      cell: (row) => [el("span", { class: kindOf(row) === "ok" ? "small" : "doubt" }, kindName(kindOf(row)) || "–")] },
    has.flags && { id: "flags", key: "col.flags", width: "minmax(5.5rem,1fr)", value: (row) => (row.f || []).join(" "), cell: flagsOf },
    has.suspicion && { id: "suspicion", key: "col.suspicion", width: "5rem", n: true, value: (row) => row.s, cell: (row) => [numeral(row.s)] },
    ...DATA.columns.map((name) => ({ id: "v." + name, name, width: "minmax(4rem,.7fr)", n: true, value: (row) => (row.v || {})[name], cell: (row) => [numeral((row.v || {})[name])] })),
  ].filter(Boolean);
  function flagsOf(row) {
    return (row.f || []).map((flag) => el("span", { class: "flag " + flag.split(/[^a-z]/)[0] }, flagName(flag)));
  }
  const columnName = (column) => (column.key ? t(column.key) : column.name);
  const mapLabel = (index, method) => t("map.of", { method, asked: ROWS[index].a || "–", name: ROWS[index].n });
  const thumb = (index, label, method, side = 200) => {
    const row = ROWS[index];
    if (row.p === undefined && !(method && row.m)) return el("div", { class: "none" }, t("picture.none"));
    const canvas = canvasOf(label, { number: row.p, side, box: row.b, map: () => (method ? mapFor(index, method()) : null) });
    canvas.classList.add("thumb");
    return canvas;
  };

  const made = new Map(); // rows of the table that were made once
  const rowOf = (index) => {
    if (made.has(index)) return made.get(index);
    const row = ROWS[index], label = t("open", { name: row.n });
    const node = el("tr", { role: "row", "data-row": index });
    for (const column of COLUMNS) {
      let cell;
      if (column.id === "name") {
        cell = el("th", { scope: "row", role: "rowheader", class: "name" },
          thumb(index, t("picture.of", { name: row.n })),
          el("button", { type: "button", class: "quiet open", "aria-label": label, on: { click: () => open(index) } }, row.n));
      } else if (column.id === "map") {
        cell = el("td", { role: "cell", "data-column": "map", "data-name": columnName(column) }, thumb(index, mapLabel(index, state.method), () => state.method));
      } else {
        const content = column.cell(row, index);
        const empty = content.length === 0 || (content.length === 1 && content[0] === "–");
        cell = el("td", { role: "cell", class: [column.n ? "n" : "", empty ? "empty" : ""].join(" ").trim() || null, "data-name": columnName(column) }, ...content);
      }
      node.append(cell);
    }
    node.addEventListener("click", (event) => {
      if (event.target.closest("canvas, .none")) open(index);
      else if (!event.target.closest("button")) choose(order.indexOf(index), false);
    });
    made.set(index, node);
    return node;
  };

  const body = at("rows") && at("rows").querySelector("tbody");
  const head = at("rows") && at("rows").querySelector("thead");
  const showHead = () => {
    at("rows").style.setProperty("--columns", COLUMNS.map((column) => column.width).join(" "));
    head.replaceChildren(el("tr", { role: "row" }, ...COLUMNS.map((column) => {
      const name = columnName(column);
      if (!column.value) return el("th", { scope: "col", role: "columnheader" }, name);
      const sorted = state.column === column.id ? (state.down ? "descending" : "ascending") : null;
      return el("th", { scope: "col", role: "columnheader", "aria-sort": sorted || "none", "data-column": column.id },
        el("button", { type: "button", title: t("col.sort", { name }), on: { click: () => sortBy(column) } }, name));
    })));
  };
  const showRows = () => {
    arrange();
    shown = Math.min(PAGE, order.length);
    body.replaceChildren(...order.slice(0, shown).map(rowOf));
    at("nothing").hidden = order.length > 0;
    const counter = at("count");
    if (counter) counter.textContent = t("shown", { shown: order.length, total: ROWS.length });
    current = -1;
    schedulePrint();
  };
  const showMore = () => {
    if (shown >= order.length) return;
    const next = Math.min(shown + PAGE, order.length);
    body.append(...order.slice(shown, next).map(rowOf));
    shown = next;
  };
  const sortBy = (column) => {
    const numbers = column.n && column.id !== "rank"; // of numbers the largest are asked for first
    if (state.column !== column.id) Object.assign(state, { column: column.id, down: Boolean(numbers) });
    else if (state.down === Boolean(numbers)) state.down = !state.down;
    else state.column = "";
    changed();
    head.querySelector(`[data-column="${CSS.escape(column.id)}"] button`)?.focus();
  };
  const choose = (place, focus = true) => {
    if (!order.length) return;
    current = Math.min(Math.max(place, 0), order.length - 1);
    while (shown <= current) showMore();
    body.querySelectorAll(".current").forEach((row) => row.classList.remove("current"));
    const row = rowOf(order[current]);
    row.classList.add("current");
    if (focus) row.querySelector(".open").focus({ preventScroll: true }), row.scrollIntoView({ block: "center" });
  };
  const changed = () => {
    showTools();
    showHead();
    showRows();
    write();
  };
  const filterBy = (changes, heading = true) => {
    Object.assign(state, { text: "", flags: [], kinds: [], truth: "", decision: "", pair: "", list: "" }, changes);
    changed();
    if (heading) at("images").scrollIntoView();
  };

  // ---------------------------------------------------------------------------------------------- tools
  const option = (value, text, chosen) => el("option", { value, selected: value === chosen }, text);
  const names = (field) => [...new Set(ROWS.map((row) => row[field]).filter(Boolean))].sort(collator.compare);
  const CHOICES = { truth: names("t"), decision: names("d") };
  const select = (id, key, entries, value, action) => el("label", {}, t(key), el("select", { id, on: { change: (event) => action(event.target.value) } },
    ...entries.map(([name, text]) => option(name, text, value))));
  const slider = (id, key, keys) => el("label", { title: keys }, t(key),
    el("input", { type: "range", id, min: 0, max: 100, step: 5, value: state[id], on: { input: (event) => setSlider(id, +event.target.value) } }),
    el("output", { for: id }, state[id] + " %"));
  let waiting = 0;
  const setSlider = (id, value) => {
    state[id] = Math.min(100, Math.max(0, value));
    const input = at(id);
    if (input) input.value = state[id], input.nextElementSibling.textContent = state[id] + " %";
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => { repaintAll(); write(); });
  };
  const setMethod = (name) => {
    state.method = name;
    made.forEach((node, index) => {
      const canvas = node.children[1] && node.children[1].querySelector("canvas");
      if (canvas) canvas.setAttribute("aria-label", mapLabel(index, name));
    });
    if (state.kinds.length || state.column === "diagnosis") made.clear(), changed();
    else repaintAll(), showTools(), write();
  };
  const tally = (values) => {
    const counts = new Map();
    for (const value of values) if (value) counts.set(value, (counts.get(value) || 0) + 1);
    return counts;
  };
  const chips = (key, counts, chosen, name, toggle) => counts.size === 0 ? null : el("div", { class: "chips", role: "group", "aria-label": t(key) },
    ...[...counts].map(([value, count]) => el("button", { type: "button", "data-chip": value, "aria-pressed": String(chosen.includes(value)), on: { click: () => toggle(value) } }, `${name(value)} ${count}`)));
  const toggled = (list, value) => (list.includes(value) ? list.filter((entry) => entry !== value) : [...list, value]);
  const narrowed = () => state.text || state.flags.length || state.kinds.length || state.truth || state.decision || state.pair || state.list !== "";

  const showTools = () => {
    const tools = at("tools");
    if (!tools) return;
    const busy = document.activeElement && tools.contains(document.activeElement) ? document.activeElement : null;
    const mark = busy && (busy.id ? "#" + busy.id : busy.dataset.chip ? `[data-chip="${CSS.escape(busy.dataset.chip)}"]` : null);
    const kinds = tally(ROWS.map(kindOf)), flags = tally(ROWS.flatMap((row) => row.f || []));
    const any = ["", t("filter.any")];
    const search = el("input", { type: "search", id: "text", placeholder: t("filter.hint"), "aria-label": t("filter"), autocomplete: "off", value: state.text });
    search.addEventListener("input", () => { state.text = search.value; showRows(), write(), showClear(); });
    const sorting = [...orders.map((name) => [name, t("order." + name)]), ...(state.column ? [["column", t("order.column")]] : [])];
    const clear = el("button", { type: "button", id: "clear", class: "quiet", on: { click: () => filterBy({}, false) } }, t("filter.clear"));
    const showClear = () => (clear.hidden = !narrowed());
    showClear();
    const pair = state.pair ? el("button", { type: "button", "aria-pressed": "true", on: { click: () => (state.pair = "", changed()) } }, state.pair.replace("\n", " ↔ ") + " ×") : null;
    const list = state.list !== "" && DATA.shortlists[+state.list] ? el("button", { type: "button", "aria-pressed": "true", on: { click: () => (state.list = "", changed()) } }, t("filter.shortlist", { name: said(DATA.shortlists[+state.list].t) }) + " ×") : null;
    tools.replaceChildren(
      el("div", { class: "line" },
        search,
        CHOICES.truth.length > 1 ? select("truth", "filter.true", [any, ...CHOICES.truth.map((name) => [name, name])], state.truth, (value) => (state.truth = value, changed())) : null,
        CHOICES.decision.length > 1 ? select("decision", "filter.decision", [any, ...CHOICES.decision.map((name) => [name, name])], state.decision, (value) => (state.decision = value, changed())) : null,
        chips("filter.flags", flags, state.flags, flagName, (value) => (state.flags = toggled(state.flags, value), changed())),
        kinds.size > 1 || state.kinds.length ? chips("filter.diagnosis", kinds, state.kinds, (kind) => t("col.diagnosis") + ": " + kindName(kind), (value) => (state.kinds = toggled(state.kinds, value), changed())) : null,
        pair, list, clear,
        el("span", { class: "count", id: "count", role: "status" }, t("shown", { shown: order.length, total: ROWS.length }))),
      el("div", { class: "line" },
        orders.length > 1 || state.column ? select("order", "order", sorting, state.column ? "column" : state.order, (value) => (Object.assign(state, { order: value, column: "" }), changed())) : null,
        DATA.methods.length > 1 ? select("method", "method", DATA.methods.map((name) => [name, name]), state.method, setMethod) : null,
        has.maps ? slider("opacity", "opacity", "[ ]") : null,
        has.maps ? slider("threshold", "threshold", ", .") : null,
        el("button", { type: "button", class: "quiet", id: "copy-rows", on: { click: copyRows } }, t("copy.rows"))));
    if (mark) tools.querySelector(mark)?.focus();
  };

  // ---------------------------------------------------------------------------------------------- copying
  const announce = (text) => { at("status").textContent = ""; requestAnimationFrame(() => (at("status").textContent = text)); };
  const copy = async (text, button) => {
    let fine = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = el("textarea", { class: "unseen" });
      area.value = text;
      document.body.append(area);
      area.select();
      fine = document.execCommand("copy");
      area.remove();
    }
    const words = t(fine ? "copied" : "copy.failed"), before = button.textContent;
    announce(words);
    button.textContent = words;
    setTimeout(() => (button.textContent = before), 1200);
  };
  const quoted = (text) => {
    const safe = /^([=+@\t\r]|-(?![\d.]))/.test(text) ? "'" + text : text; // a spreadsheet must not run a name as a formula
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const csv = (lines) => lines.map((line) => line.map((cell) => quoted(String(cell ?? ""))).join(",")).join("\n") + "\n";
  const markdown = (lines) => {
    const text = (line) => "| " + line.map((cell) => String(cell).replaceAll("|", "\\|")).join(" | ") + " |";
    return [text(lines[0]), "|" + "---|".repeat(lines[0].length), ...lines.slice(1).map(text)].join("\n") + "\n";
  };
  const linesOf = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => (cell.querySelector(".value") || cell).textContent.trim()));
  function copyRows(event) {
    const columns = COLUMNS.filter((column) => column.value);
    copy(csv([columns.map((column) => column.key ? WORDS.en[column.key] : column.name), ...order.map((index) => columns.map((column) => column.value(ROWS[index])))]), event.currentTarget);
  }

  // ---------------------------------------------------------------------------------------------- detail
  const detail = at("detail"), help = at("help");
  const scaleBar = (map, row) => {
    const bar = el("canvas", { "aria-hidden": "true", width: 255, height: 1 }), context = bar.getContext("2d");
    const pixels = context.createImageData(255, 1), table = TABLES[map.s || 0];
    for (let k = 0; k < 255; k++) pixels.data.set([table[3 * k], table[3 * k + 1], table[3 * k + 2], 255], 4 * k);
    context.putImageData(pixels, 0, 0);
    const ends = map.s ? [t("scale.against"), t("scale.for")] : [t("scale.low"), t("scale.high")];
    return el("div", { class: "scale" }, bar,
      el("div", {}, el("span", {}, `${numeral(map.lo)} ${ends[0]}`), el("span", {}, t(map.sh ? "scale.shared" : "scale.own")), el("span", {}, `${numeral(map.hi)} ${ends[1]}`)));
  };
  const view = (index, map, words) => {
    const row = ROWS[index];
    return el("figure", {},
      canvasOf(mapLabel(index, words.n), { number: row.p, side: 448, box: row.b, held: true, map: () => map }),
      el("figcaption", {}, el("span", { class: "label" }, words.n), words.c ? " " + said(words.c) : "",
        words.k ? el("span", { class: "small doubt" }, `${kindName(words.k)}: ${words.msg || ""}`) : null, scaleBar(map, row)));
  };
  const fact = (key, value, extra) => (value ? el("div", {}, el("dt", {}, t(key)), el("dd", {}, value, extra ? el("small", {}, " " + extra) : null)) : null);
  const topOf = (row) => {
    const entries = row.top ? row.top : [[row.d, row.dp], [row.t, row.tp], [row.a, row.ap]].filter(([name, p], place, all) => name && known(p) && all.findIndex(([other]) => other === name) === place);
    if (!entries.length) return [];
    return [el("h3", {}, t("top")), el("ul", { class: "tops" }, ...entries.map(([name, p]) => {
      const fill = el("span");
      fill.style.width = Math.min(100, 100 * (p || 0)) + "%";
      return el("li", {}, el("span", {}, name), el("span", { class: "track", "aria-hidden": "true" }, fill), el("span", { class: "n" }, probability(p)));
    }))];
  };
  const open = (index, keep = false, word = false) => {
    const row = ROWS[index];
    if (!row) return;
    const maps = mapsOf(index), place = order.indexOf(index);
    forget(detail);
    const step = (by) => order[place + by] !== undefined && open(order[place + by], true);
    const button = (key, text, action, off) => el("button", { type: "button", class: "quiet", "data-step": key, "aria-label": t(key), disabled: off, on: { click: action } }, text);
    detail.replaceChildren(
      el("div", { class: "top" }, el("h2", { id: "detail-title" }, row.n),
        button("previous", "←", () => step(-1), place < 1), button("next", "→", () => step(1), place < 0 || place >= order.length - 1),
        el("button", { type: "button", class: "quiet", "aria-label": t("close"), autofocus: true, on: { click: () => detail.close() } }, "✕")),
      el("div", { class: "inside" },
        row.w ? answerOf(index) : null,
        el("dl", { class: "lead" },
          fact("decision", row.d, known(row.dp) ? "P " + probability(row.dp) : ""), fact("true", row.t, known(row.tp) ? "P " + probability(row.tp) : ""),
          fact(row.w ? "col.words" : "asked", row.a, [known(row.ap) ? "P " + probability(row.ap) : "", row.ar ? t("rank", { rank: row.ar }) : ""].filter(Boolean).join(", ")),
          row.f ? el("div", {}, el("dt", {}, t("col.flags")), el("dd", {}, ...flagsOf(row))) : null,
          ...Object.entries(row.v || {}).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, numeral(value))))),
        row.why ? el("p", { class: "why" }, el("strong", {}, t("why") + " "), said(row.why)) : null,
        el("div", { class: "views" },
          row.p === undefined ? null : el("figure", {}, canvasOf(t("picture.of", { name: row.n }), { number: row.p, side: 448, box: row.b, held: true, map: () => null }), el("figcaption", {}, el("span", { class: "label" }, t("picture")))),
          ...(row.m || []).map((words, k) => view(index, maps.m[k], words)), ...(row.x || []).map((words, k) => view(index, maps.x[k], words))),
        ...topOf(row),
        row.nb ? el("h3", {}, t("neighbours")) : null,
        row.nb ? el("div", { class: "near" }, ...row.nb.map((neighbour, k) => el("figure", {},
          neighbour.p === undefined ? null : canvasOf(t("picture.of", { name: neighbour.n }), { number: neighbour.p, side: 264, held: true, map: () => maps.nb[k] }),
          el("figcaption", {}, el("span", { class: "label" }, neighbour.l || neighbour.n), neighbour.l ? el("span", { class: "small" }, neighbour.n) : null, known(neighbour.s) ? el("span", { class: "small" }, t("similarity", { value: numeral(neighbour.s) })) : null)))) : null,
        row.e ? el("h3", {}, t("evidence")) : null,
        row.e ? el("div", { class: "near" }, ...row.e.map((entry) => el("figure", {}, canvasOf(said(entry.c), { number: entry.p, side: 264, held: true, map: () => null }), el("figcaption", {}, said(entry.c))))) : null));
    if (!detail.open) detail.showModal();
    detail.scrollTop = 0;
    if (keep) (detail.querySelector(".top button:not([disabled])") || detail).focus();
    if (word) (detail.querySelector(".word[aria-pressed=true]") || detail).focus();
    state.open = String(index);
    if (place >= 0) choose(place, false);
    write();
  };
  detail.addEventListener("close", () => {
    forget(detail);
    detail.replaceChildren();
    state.open = "";
    write();
    if (current >= 0) choose(current);
  });
  for (const dialog of [detail, help]) dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  const showHelp = () => {
    const keys = [["/", "filter"], ["j k", "rows"], ["Enter", "enter"], ["Esc", "escape"], ["s", "sort"], ["m", "method"], ["[ ]", "opacity"], [", .", "threshold"], ["?", "help"]];
    help.replaceChildren(el("div", { class: "top" }, el("h2", { id: "help-title" }, t("help")), el("button", { type: "button", class: "quiet", "aria-label": t("close"), on: { click: () => help.close() } }, "✕")),
      el("div", { class: "inside" }, el("dl", { class: "keylist" }, ...keys.flatMap(([key, name]) => [
        el("dt", {}, ...key.split(" ").flatMap((part, place) => [place ? " " : null, el("kbd", {}, part)])), el("dd", {}, t("key." + name))]))));
    help.showModal();
  };

  // ---------------------------------------------------------------------------------------------- other parts
  const strips = () => document.querySelectorAll(".strip[data-rows]").forEach((strip) => {
    forget(strip);
    strip.replaceChildren(...strip.dataset.rows.split(" ").filter((text) => ROWS[+text]).map((text) => {
      const index = +text, row = ROWS[index];
      return el("button", { type: "button", "aria-label": t("open", { name: row.n }), title: [row.n, row.t].filter(Boolean).join(" · "), on: { click: () => open(index) } },
        thumb(index, mapLabel(index, state.method), () => state.method, 152));
    }));
  });
  const showGrid = () => {
    const grid = at("grid");
    if (!grid) return;
    forget(grid);
    const rows = ROWS.map((_, index) => index).filter((index) => ROWS[index].p !== undefined).slice(0, 12);
    grid.replaceChildren(
      el("thead", {}, el("tr", {}, el("td"), ...rows.map((index) => el("th", { scope: "col" }, ROWS[index].a || ROWS[index].d || "", el("span", { class: "small" }, ROWS[index].n))))),
      el("tbody", {}, ...[null, ...DATA.methods].map((name) => el("tr", {}, el("th", { scope: "row" }, name || t("picture")), ...rows.map((index) => el("td", {},
        el("button", { type: "button", "aria-label": [t("open", { name: ROWS[index].n }), name].filter(Boolean).join(": "), on: { click: () => open(index) } },
          thumb(index, name ? mapLabel(index, name) : t("picture.of", { name: ROWS[index].n }), name ? () => name : null))))))));
  };

  // Pictures must be decoded before the page is printed: those of the view are, in idle time.
  let printing = [], scheduled = 0;
  const schedulePrint = () => {
    clearTimeout(scheduled);
    scheduled = setTimeout(async () => {
      const flagged = order.filter((index) => ROWS[index].f), chosen = (flagged.length ? flagged : order).filter((index) => ROWS[index].p !== undefined).slice(0, PRINTED);
      const ready = [];
      for (const index of chosen) ready.push([index, await load(ROWS[index].p)]);
      printing = ready;
      for (const canvas of document.querySelectorAll("#grid canvas")) {
        const view = shows.get(canvas); // held for the printer; on the screen they come and go like all others
        if (view && view.number !== undefined) view.printed ||= await load(view.number);
      }
    }, 400);
  };
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    unfolded.forEach((entry) => (entry.open = true));
    for (const canvas of document.querySelectorAll("#grid canvas")) {
      const view = shows.get(canvas);
      if (view && view.printed) paint(canvas, view.printed, view.map(), view.side, view.box);
    }
    const place = at("print");
    if (place) place.replaceChildren(el("p", {}, t("print.note")), ...printing.map(([index, image]) => {
      const canvas = el("canvas"), row = ROWS[index];
      paint(canvas, image, mapFor(index, state.method), 260, row.b);
      return el("figure", {}, canvas, el("figcaption", {}, el("strong", {}, row.n), ` ${row.d || ""} ${known(row.dp) ? probability(row.dp) : ""}`,
        row.t ? el("span", { class: "small" }, `${t("col.true")}: ${row.t}`) : null, ...flagsOf(row)));
    }));
  });
  addEventListener("afterprint", () => {
    unfolded.forEach((entry) => (entry.open = false));
    at("print")?.replaceChildren();
  });

  // ---------------------------------------------------------------------------------------------- language and theme
  const speak = () => {
    root.lang = state.lang || ("auto" in root.dataset && navigator.language.toLowerCase().startsWith("ja") ? "ja" : firstLanguage);
    document.querySelectorAll("[data-i18n]").forEach((node) => (node.textContent = t(node.dataset.i18n, { count: node.dataset.count })));
    document.querySelectorAll("[data-aria]").forEach((node) => node.setAttribute("aria-label", t(node.dataset.aria)));
  };
  const firstLanguage = root.lang;
  const showAll = () => {
    speak();
    root.dataset.theme = state.theme;
    if (body) forget(body), made.clear(), changed();
    strips();
    showGrid();
  };
  at("language").addEventListener("click", () => { state.lang = root.lang === "ja" ? "en" : "ja"; showAll(); write(); });
  at("theme").addEventListener("click", () => {
    const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = state.theme = dark ? "light" : "dark";
    write();
  });
  // Rows that come into sight on the way are taller than was assumed, and more are made: so again, until it is there.
  const jump = (target, times = 20) => {
    const before = target.getBoundingClientRect().top;
    target.scrollIntoView({ behavior: "instant" });
    const there = Math.abs(before - target.getBoundingClientRect().top) < 1;
    if (times && !there) setTimeout(() => jump(target, times - 1), 60);
  };
  at("keys").addEventListener("click", showHelp);
  document.addEventListener("click", (event) => {
    const node = event.target.closest("[data-decision], [data-true], [data-pair], [data-shortlist], [data-copy], .bar a, .skip");
    if (!node) return;
    const { true: truth, decision, pair, shortlist, copy: form } = node.dataset;
    if (pair) filterBy({ pair });
    else if (shortlist !== undefined) filterBy({ list: shortlist, column: "" });
    else if (truth !== undefined) filterBy({ truth, decision: decision || "" });
    else if (form) copy((form === "csv" ? csv : markdown)(linesOf(node.closest("figure").querySelector("table"))), node);
    else if (node.hash) {
      event.preventDefault(); // the hash holds the view
      const target = document.querySelector(node.hash);
      jump(target);
      target.querySelector("h2")?.setAttribute("tabindex", "-1");
      target.querySelector("h2")?.focus({ preventScroll: true });
    }
  });

  // ---------------------------------------------------------------------------------------------- keys
  const KEYS = {
    "/": () => at("text")?.focus(), "?": showHelp,
    j: () => choose(current + 1), k: () => choose(current - 1),
    s: () => { const next = orders[(orders.indexOf(state.order) + (state.column ? 0 : 1)) % orders.length]; Object.assign(state, { order: next, column: "" }); changed(); announce(t("order." + next)); },
    m: () => { if (DATA.methods.length > 1) setMethod(DATA.methods[(DATA.methods.indexOf(state.method) + 1) % DATA.methods.length]), announce(state.method); },
    "[": () => setSlider("opacity", state.opacity - 5), "]": () => setSlider("opacity", state.opacity + 5),
    ",": () => setSlider("threshold", state.threshold - 5), ".": () => setSlider("threshold", state.threshold + 5),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches?.("input[type=search], textarea, select");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (help.open) return;
    if (detail.open) {
      if (event.key === "j" || event.key === "k") detail.querySelector(`[data-step=${event.key === "j" ? "next" : "previous"}]`)?.click();
      else if ("[],.".includes(event.key)) KEYS[event.key]();
      else return;
      event.preventDefault();
      return;
    }
    if (event.key === "Enter" && current >= 0 && !event.target.closest("button, a, summary, input")) open(order[current]);
    else if (KEYS[event.key]) KEYS[event.key]();
    else return;
    event.preventDefault();
  });

  // ---------------------------------------------------------------------------------------------- start
  restore();
  const wanted = state.open;
  showAll();
  if (wanted !== "" && ROWS[+wanted]) open(+wanted);
  addEventListener("hashchange", () => { restore(); const index = state.open; showAll(); if (index !== "") open(+index); else if (detail.open) detail.close(); });
  if (at("more")) new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && showMore(), { rootMargin: "200% 0px" }).observe(at("more"));
})();
