"use strict";
// The page of a survey. Its questions come from the server, or lie in the page itself (offline). An answer is first
// kept in this browser, then sent until the server has acknowledged it; only then does the page call it saved.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const GUARD = 300; // milliseconds: the second click of a double click must not answer the next question
  const KEYS = { 1: "left", 2: "right", 0: "tie", 9: "cannot_judge" };
  const name = `konkyo-survey:${data.form_hash}`;

  // --- what this browser keeps ---
  const memory = new Map();
  let lasting = true;
  try {
    localStorage.setItem(`${name}:probe`, "1");
    localStorage.removeItem(`${name}:probe`);
  } catch {
    lasting = false;
  }
  function recall(key) {
    let text = memory.get(key);
    try {
      if (lasting) text = localStorage.getItem(`${name}:${key}`) ?? undefined;
      return text === undefined ? null : JSON.parse(text);
    } catch {
      return null;
    }
  }
  function keep(key, value) {
    const text = JSON.stringify(value);
    memory.set(key, text);
    try {
      if (lasting) localStorage.setItem(`${name}:${key}`, text);
    } catch {
      lasting = false; // full: the page goes on, and says that it must not be closed
      $("unsaved-note").hidden = false;
    }
  }

  // --- state ---
  const languages = Object.keys(data.texts);
  const wished = recall("language") ?? ((navigator.language || "en").startsWith("ja") ? "ja" : "en");
  let lang = languages.includes(wished) ? wished : languages[0];
  let rater = null;
  let items = [];
  let answers = {}; // item -> word
  let at = 0;
  let since = 0; // when the pictures were shown; 0: they are not
  let free = false; // whether an answer is taken
  let turn = 0; // tells late pictures of an earlier question from those of this one
  let status = ["", {}];

  const s = (key, values = {}) =>
    (data.strings[lang][key] ?? key).replace(/\{(\w+)\}/g, (whole, slot) => (slot in values ? String(values[slot]) : whole));
  const random = (count, alphabet) =>
    Array.from(crypto.getRandomValues(new Uint8Array(count)), (byte) => alphabet[byte % alphabet.length]).join("");
  const source = (picture) => (data.offline ? data.pictures[picture] : `/pictures/${picture}`);

  // --- words ---
  function say(key, values = {}) {
    status = [key, values];
    $("status").textContent = key ? s(key, values) : "";
  }
  function paragraphs(target, text) {
    target.replaceChildren(
      ...text.split(/\n\s*\n/).map((part) => {
        const p = document.createElement("p");
        p.textContent = part.trim();
        return p;
      }),
    );
  }
  function translate() {
    document.documentElement.lang = lang;
    document.title = data.texts[lang].title;
    $("title").textContent = data.texts[lang].title;
    paragraphs($("consent-text"), data.texts[lang].consent);
    for (const element of document.querySelectorAll("[data-s]")) element.textContent = s(element.dataset.s);
    $("languages").setAttribute("aria-label", s("language"));
    for (const button of $("languages").children) button.setAttribute("aria-pressed", String(button.lang === lang));
    $("done-text").textContent = s(data.offline ? "done.offline" : "done.text");
    say(...status);
    if (!$("ask").hidden) words();
  }
  function words() {
    const item = items[at];
    const question = data.texts[lang].question.replaceAll("{target}", item.target);
    const told = item.instruction ? s("instruction", { answer: s(item.instruction) }) : "";
    $("question").textContent = told || question;
    $("question").classList.toggle("instruction", Boolean(told));
    $("progress-text").textContent = s("progress", { at: at + 1, of: items.length });
    $("progress").max = items.length;
    $("progress").value = Object.keys(answers).length;
    for (const [id, key] of [["original", "original"], ["left", "left.map"], ["right", "right.map"]]) {
      $(id).alt = s(key);
      $(id).parentElement.setAttribute("aria-label", `${s(key)}: ${s("larger")}`);
    }
    for (const button of document.querySelectorAll("[data-answer]"))
      button.setAttribute("aria-pressed", String(answers[item.id] === button.dataset.answer));
  }

  // --- pages ---
  function open(section) {
    for (const id of ["consent", "ask", "done"]) $(id).hidden = id !== section;
    $("code-line").hidden = !rater;
    $("code").textContent = rater ?? "";
    $("code-hint").hidden = Boolean(data.offline);
  }
  function consent(trouble = "") {
    open("consent");
    $("consent-trouble").textContent = trouble;
    $("agree").hidden = !rater && !data.offline && !data.open;
    $("code-form").hidden = Boolean(data.offline) || Boolean(rater);
    if ($("agree").hidden && !trouble) $("consent-trouble").textContent = s("code.needed");
  }
  function ready(value) {
    free = value;
    for (const button of document.querySelectorAll("[data-answer]")) button.setAttribute("aria-disabled", String(!value));
  }
  async function ask() {
    if (at >= items.length) return done();
    open("ask");
    const mine = ++turn;
    const item = items[at];
    since = 0;
    ready(false);
    $("picture-trouble").hidden = true;
    $("back").hidden = at === 0;
    $("download-part").hidden = !data.offline;
    words();
    $("question").focus({ preventScroll: true });
    window.scrollTo(0, 0);
    const pictures = ["original", "left", "right"].map((id) => [$(id), source(item[id])]);
    for (const [image] of pictures) image.style.visibility = "hidden"; // both sides appear at once
    try {
      await Promise.all(pictures.map(([image, url]) => ((image.src = url), image.decode())));
    } catch {
      if (mine === turn) $("picture-trouble").hidden = false;
      return;
    }
    if (mine !== turn) return;
    for (const [image] of pictures) image.style.visibility = "visible";
    since = performance.now();
    setTimeout(() => mine === turn && ready(true), GUARD);
    const next = items[at + 1];
    if (next && !data.offline) for (const id of ["original", "left", "right"]) new Image().src = source(next[id]);
  }
  function done() {
    turn++;
    open("done");
    $("download").hidden = !data.offline;
    if (!data.offline) report();
    $("thanks").focus();
  }
  function answer(word) {
    const time = Math.round(performance.now() - since);
    if ($("ask").hidden || !free || $("larger").open) return;
    const item = items[at];
    const given = { item: item.id, answer: word, ms: Math.min(time, 86400000), timestamp: new Date().toISOString(), position: at + 1, key: random(24, "0123456789abcdef") };
    ready(false);
    answers[item.id] = word;
    store.add(given, item);
    at += 1;
    ask();
  }
  function go(order, known) {
    items = order;
    answers = { ...known };
    const first = items.findIndex((item) => !(item.id in answers));
    at = first < 0 ? items.length : first;
    ask();
  }

  // --- answers that go to the server ---
  const queue = () => recall(`unsent:${rater}`) ?? [];
  let sending = false;
  let pause = 1000;
  let refusal = "";
  function report() {
    const count = queue().length;
    if (refusal) say("refused", { reason: refusal });
    else if (count === 0) say(Object.keys(answers).length ? "saved" : "");
    else say(pause > 1000 ? "waiting" : "saving", { count });
    $("done-text").hidden = count > 0 || Boolean(refusal); // until all is saved, the page must not be closed
  }
  async function request(method, path, body) {
    const headers = body ? { "Content-Type": "application/json" } : {};
    const limit = AbortSignal.timeout ? AbortSignal.timeout(20000) : undefined;
    const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal: limit, cache: "no-store" });
    if (response.status >= 500 || response.status === 408) throw new Error(String(response.status));
    return [response.status, await response.json().catch(() => ({}))];
  }
  async function flush() {
    if (sending) return;
    sending = true;
    try {
      for (let rest = queue(); rest.length; rest = queue()) {
        report();
        const [first] = rest;
        const { item, ...body } = first;
        const [code, reply] = await request("PUT", `/api/raters/${rater}/answers/${item}`, { ...body, form_hash: data.form_hash });
        if (code >= 400) {
          refusal = reply.detail || String(code); // it would be refused again; it stays in this browser, by itself
          keep(`refused:${rater}`, [...(recall(`refused:${rater}`) ?? []), first]);
        }
        keep(`unsent:${rater}`, queue().filter((other) => other.key !== first.key));
        pause = 1000;
      }
    } catch {
      pause = Math.min(pause * 2, 30000);
      setTimeout(flush, pause);
    } finally {
      sending = false;
      report();
    }
  }
  const server = {
    add(given) {
      keep(`unsent:${rater}`, [...queue(), given]);
      flush();
    },
    enter(code, reply) {
      rater = code;
      keep("rater", code);
      history.replaceState(null, "", `#${code}`);
      const known = { ...reply.answers };
      for (const waiting of queue()) known[waiting.item] = waiting.answer;
      go(reply.items, known);
      flush();
    },
    async look(code) {
      const [status, reply] = await request("GET", `/api/raters/${encodeURIComponent(code)}`);
      if (status >= 400) return consent(s("code.unknown"));
      if (reply.consented) return this.enter(code, reply);
      rater = code;
      return consent();
    },
    async agree() {
      const [status, reply] = await request("POST", "/api/raters", { form_hash: data.form_hash, consent: true, ...(rater ? { rater } : {}) });
      if (status >= 400) return consent(reply.detail || String(status));
      return this.enter(reply.rater, reply);
    },
    begin() {
      const code = location.hash.slice(1).toUpperCase() || recall("rater");
      return code ? this.look(code) : consent();
    },
  };

  // --- answers that stay in the page until they are saved as a file ---
  const local = {
    add(given, item) {
      const { key, ...rest } = given;
      const all = { ...(recall("answers") ?? {}), [given.item]: { ...rest, left: item.left, right: item.right } };
      keep("answers", all);
    },
    order() {
      return data.orders[rater.slice(0, 2)].map((number) => {
        const item = data.items[Math.floor(number / 100)];
        const [left, right] = [item.pictures[Math.floor((number % 100) / 10)], item.pictures[number % 10]];
        return { ...item, left, right };
      });
    },
    begin() {
      $("offline-note").hidden = false;
      rater = recall("rater");
      if (!rater) return consent();
      const known = Object.entries(recall("answers") ?? {}).map(([item, given]) => [item, given.answer]);
      return go(this.order(), Object.fromEntries(known));
    },
    agree() {
      rater = random(8, data.alphabet);
      keep("rater", rater);
      go(this.order(), {});
    },
    save() {
      const given = Object.values(recall("answers") ?? {}).sort((a, b) => a.position - b.position);
      const file = { konkyo_survey: 1, form_hash: data.form_hash, rater, answers: given };
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }));
      link.download = `answers-${rater}.json`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    },
  };
  const store = data.offline ? local : server;

  // --- what the rater does ---
  async function attempt(action, failed) {
    try {
      await action();
    } catch {
      failed();
    }
  }
  function begin() {
    attempt(() => store.begin(), () => {
      say("unreachable");
      setTimeout(begin, 3000);
    });
  }
  for (const language of languages.length > 1 ? languages : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.lang = language;
    button.textContent = { en: "English", ja: "日本語" }[language];
    button.addEventListener("click", () => {
      lang = language;
      keep("language", lang);
      translate();
    });
    $("languages").append(button);
    $("languages").hidden = false;
  }
  $("agree").addEventListener("click", () => attempt(() => store.agree(), () => consent(s("unreachable"))));
  $("code-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const code = $("code-input").value.toUpperCase().replace(/[^0-9A-Z]/g, "");
    if (code) attempt(() => server.look(code), () => consent(s("unreachable")));
  });
  for (const button of document.querySelectorAll("[data-answer]")) button.addEventListener("click", () => answer(button.dataset.answer));
  for (const button of document.querySelectorAll(".zoom"))
    button.addEventListener("click", () => {
      const image = button.firstElementChild;
      if (!since) return;
      $("large").src = image.src;
      $("large").alt = image.alt;
      $("larger").setAttribute("aria-label", image.alt);
      $("larger").showModal();
    });
  $("close").addEventListener("click", () => $("larger").close());
  $("large").addEventListener("click", () => $("larger").close());
  $("again").addEventListener("click", ask);
  $("back").addEventListener("click", () => {
    if (at > 0) at -= 1;
    ask();
  });
  $("download").addEventListener("click", () => local.save());
  $("download-part").addEventListener("click", () => local.save());
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "INPUT") return;
    if (event.key in KEYS && !$("ask").hidden && !$("larger").open) answer(KEYS[event.key]);
  });
  window.addEventListener("hashchange", () => data.offline || location.reload()); // the link of another rater
  window.addEventListener("online", () => rater && !data.offline && flush());
  window.addEventListener("beforeunload", (event) => {
    const waits = !lasting && rater && (data.offline ? Object.keys(answers).length : queue().length);
    if (waits) event.preventDefault();
  });
  $("unsaved-note").hidden = lasting;
  translate();
  begin();
})();
