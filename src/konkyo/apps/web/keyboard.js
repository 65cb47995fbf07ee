// What Gradio's page lacks for the keyboard; it runs once, when the page is there. Arrow keys, Home and End move among tabs.
() => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  document.addEventListener('keydown', event => {
    const tab = event.target.closest('[role="tab"]');
    if (!tab || !(event.key in step || event.key === 'Home' || event.key === 'End')) { return; }
    const tabs = [...tab.closest('[role="tablist"]').querySelectorAll('[role="tab"]')];
    const last = tabs.length - 1, at = tabs.indexOf(tab) + (step[event.key] || 0);
    const next = event.key === 'Home' ? 0 : event.key === 'End' ? last : (at + tabs.length) % tabs.length;
    event.preventDefault();
    tabs[next].click();
    tabs[next].focus();
  });
}
