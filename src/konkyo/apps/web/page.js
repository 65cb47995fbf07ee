// What the pictures of the page do by themselves. Gradio runs this once for every component that holds them:
// `element` is the component, `trigger(name, data)` tells its server of an event.
(() => {
  const numbers = (event, stage) => {
    const at = stage.getBoundingClientRect();
    const share = (value, start, length) => Math.min(Math.max((value - start) / length, 0), 1);
    return [share(event.clientX, at.left, at.width) * stage.dataset.width, share(event.clientY, at.top, at.height) * stage.dataset.height];
  };
  let drag = null, dragged = false, focused = null;

  // A picture that is drawn anew takes its buttons along: the keyboard stays where it was.
  element.addEventListener('focusin', event => {
    const button = event.target.closest('[data-choice]');
    focused = button ? button.dataset.choice : null;
  });
  watch('value', () => {
    const button = focused !== null && document.activeElement === document.body && element.querySelector(`[data-choice="${focused}"]`);
    if (button) { button.focus({ preventScroll: true }); }
    element.querySelectorAll('[data-frame]').forEach(range => shown(range.closest('.animation'), Number(range.value)));
  });

  element.addEventListener('click', event => {
    const button = event.target.closest('[data-choice]');
    const stage = event.target.closest('.stage');
    if (dragged) { dragged = false; return; }
    if (stage && event.detail > 0) { // a mouse or finger: the server knows which box is the smallest around the point
      const [x, y] = numbers(event, stage);
      trigger('select', { x, y });
    } else if (button) {
      trigger('select', { choice: Number(button.dataset.choice) });
    }
    const play = event.target.closest('[data-play]');
    if (play) { playing(play.closest('.animation')); }
  });

  element.addEventListener('pointerdown', event => {
    const stage = event.target.closest('.stage[data-drag]');
    if (!stage || event.button !== 0) { return; }
    event.preventDefault();
    const rubber = document.createElement('span');
    rubber.className = 'rubber';
    drag = { stage, rubber, start: numbers(event, stage) };
    stage.append(rubber);
    stage.setPointerCapture(event.pointerId);
  });
  element.addEventListener('pointermove', event => {
    if (!drag) { return; }
    const { stage, rubber, start } = drag, end = numbers(event, stage);
    const width = stage.dataset.width, height = stage.dataset.height;
    rubber.style.left = `${100 * Math.min(start[0], end[0]) / width}%`;
    rubber.style.top = `${100 * Math.min(start[1], end[1]) / height}%`;
    rubber.style.width = `${100 * Math.abs(start[0] - end[0]) / width}%`;
    rubber.style.height = `${100 * Math.abs(start[1] - end[1]) / height}%`;
  });
  const finished = event => {
    if (!drag) { return; }
    const { stage, rubber, start } = drag, end = numbers(event, stage);
    rubber.remove();
    drag = null;
    const box = [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];
    const least = 0.02 * Math.max(stage.dataset.width, stage.dataset.height);
    dragged = event.type === 'pointerup' && box[2] - box[0] > least && box[3] - box[1] > least;
    if (dragged) { trigger('select', { box }); }
  };
  element.addEventListener('pointerup', finished);
  element.addEventListener('pointercancel', finished);

  const shown = (animation, number) => animation.querySelectorAll('.frame').forEach((frame, at) => { frame.hidden = at !== number; });
  element.addEventListener('input', event => {
    const range = event.target;
    if (range.matches('[data-reveal]')) { range.closest('.reveal').style.setProperty('--at', `${range.value}%`); }
    if (range.matches('[data-frame]')) { shown(range.closest('.animation'), Number(range.value)); }
    event.stopPropagation();
  });
  const playing = animation => {
    const range = animation.querySelector('[data-frame]');
    let number = Number(range.value) >= Number(range.max) ? 0 : Number(range.value);
    const step = () => {
      if (!animation.isConnected || number > Number(range.max)) { return; }
      range.value = number;
      shown(animation, number);
      number += 1;
      setTimeout(step, 160);
    };
    step();
  };
})();
